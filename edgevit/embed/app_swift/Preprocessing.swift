// Image -> input tensor, number by number as edgevit prepares it: the resize is Pillow's, written out, since vImage and
// Core Image have other filters than accuracy was measured with.

import CoreGraphics
import Foundation

/// RGB, 8 bits each, rows from top left. A camera's rotation must be applied by the capture connection, not here.
public struct Pixels: Sendable {
    public let rgb: [UInt8]
    public let width: Int
    public let height: Int

    public init(rgb: [UInt8], width: Int, height: Int) throws {
        guard width > 0, height > 0, rgb.count == width * height * 3 else {
            throw Refused("\(rgb.count) bytes are no RGB image of \(width) x \(height)")
        }
        self.rgb = rgb
        self.width = width
        self.height = height
    }

    /// Draws a decoded image without resizing it, colours as stored.
    public init(_ image: CGImage) throws {
        let (width, height) = (image.width, image.height)
        var rgba = [UInt8](repeating: 0, count: width * height * 4)
        let space = image.colorSpace?.model == .rgb ? image.colorSpace! : CGColorSpace(name: CGColorSpace.sRGB)!
        let drawn = rgba.withUnsafeMutableBytes { buffer -> Bool in
            guard let context = CGContext(
                data: buffer.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: width * 4,
                space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue
            ) else { return false }
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        guard drawn else { throw Refused("an image of \(width) x \(height) cannot be drawn") }
        var rgb = [UInt8]()
        rgb.reserveCapacity(width * height * 3)
        for pixel in stride(from: 0, to: rgba.count, by: 4) { rgb.append(contentsOf: rgba[pixel ..< pixel + 3]) }
        try self.init(rgb: rgb, width: width, height: height)
    }
}

/// Integer weights of one output position.
private struct Taps {
    let first: Int
    let weights: [Int32]
}

private let bits: Int32 = 22

private func bilinear(_ x: Double) -> Double { max(0, 1 - abs(x)) }

private func cubic(_ x: Double) -> Double {
    let a = -0.5
    let t = abs(x)
    if t < 1 { return ((a + 2) * t - (a + 3)) * t * t + 1 }
    return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0
}

extension Preprocess {
    /// Float32 `[3, H, W]`. Throws Refused for a resize that this loader does not have.
    public func tensor(_ image: Pixels) throws -> [Float] {
        let (height, width) = (size[0], size[1])
        var (tall, wide) = (height, width)
        switch resize {
        case "squash": break
        case "shortest", "squash_crop":
            tall = Int((Double(height) / cropPct).rounded(.down))
            wide = Int((Double(width) / cropPct).rounded(.down))
            if resize == "shortest" {
                if tall * image.width >= wide * image.height {
                    wide = tall * image.width / image.height
                } else {
                    tall = wide * image.height / image.width
                }
            }
        default: throw Refused("this loader does not know the resize \(resize)")
        }
        let left = Int((Double(wide - width) / 2).rounded(.toNearestOrEven))
        let top = Int((Double(tall - height) / 2).rounded(.toNearestOrEven))
        let columns = try taps(from: image.width, to: wide, start: left, count: width)
        let rows = try taps(from: image.height, to: tall, start: top, count: height)
        let fitted: [UInt8]
        if tall < image.height, image.height - tall > 2 * (image.width - wide) { // Pillow 13's order
            fitted = across(down(image.rgb, image.width, rows), image.width, columns)
        } else {
            fitted = down(across(image.rgb, image.width, columns), width, rows)
        }
        var tensor = [Float](repeating: 0, count: 3 * height * width)
        for channel in 0 ..< 3 {
            let values = (0 ..< 256).map { (Float($0) / 255 - mean[channel]) / std[channel] }
            for pixel in 0 ..< height * width {
                tensor[channel * height * width + pixel] = values[Int(fitted[3 * pixel + channel])]
            }
        }
        return tensor
    }

    private func taps(from: Int, to: Int, start: Int, count: Int) throws -> [Taps] {
        let (support, weight): (Double, (Double) -> Double)
        switch interpolation {
        case "bilinear": (support, weight) = (1, bilinear)
        case "bicubic": (support, weight) = (2, cubic)
        default: throw Refused("this loader has bilinear and bicubic, the manifest says \(interpolation)")
        }
        let scale = Double(from) / Double(to)
        let stretch = max(scale, 1) // shrinking widens the filter: no input pixel is skipped
        return (start ..< start + count).map { position in
            if from == to { return Taps(first: position, weights: [1 << bits]) }
            let centre = (Double(position) + 0.5) * scale
            let first = max(0, Int(centre - support * stretch + 0.5))
            let last = min(from, Int(centre + support * stretch + 0.5))
            let raw = (first ..< last).map { weight((Double($0) - centre + 0.5) / stretch) }
            let sum = raw.reduce(0, +)
            let one = Double(1 << bits)
            return Taps(first: first, weights: raw.map { Int32($0 / sum * one + ($0 < 0 ? -0.5 : 0.5)) })
        }
    }

    private func across(_ source: [UInt8], _ width: Int, _ plan: [Taps]) -> [UInt8] {
        pass(source, plan, lines: source.count / (3 * width), step: 3, stride: 3 * width, outStep: 3, outStride: 3 * plan.count)
    }

    private func down(_ source: [UInt8], _ width: Int, _ plan: [Taps]) -> [UInt8] {
        pass(source, plan, lines: width, step: 3 * width, stride: 3, outStep: 3 * width, outStride: 3)
    }

    /// One pass along an axis whose neighbours lie `step` bytes apart; lines start `stride` bytes apart.
    private func pass(
        _ source: [UInt8], _ plan: [Taps], lines: Int, step: Int, stride: Int, outStep: Int, outStride: Int
    ) -> [UInt8] {
        var target = [UInt8](repeating: 0, count: 3 * lines * plan.count)
        for line in 0 ..< lines {
            for (position, taps) in plan.enumerated() {
                for channel in 0 ..< 3 {
                    var sum: Int32 = 1 << (bits - 1)
                    var at = line * stride + taps.first * step + channel
                    for weight in taps.weights {
                        sum &+= Int32(source[at]) &* weight
                        at += step
                    }
                    target[line * outStride + position * outStep + channel] = UInt8(clamping: sum >> bits)
                }
            }
        }
        return target
    }
}

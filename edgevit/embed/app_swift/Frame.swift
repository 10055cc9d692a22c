// A camera's frame -> Pixels, by vImage: bytes change places, nothing is resized and no colour converted.

import Accelerate
import CoreVideo

extension Pixels {
    /// Throws Refused for a frame that is not 32BGRA: the capture output gives those when its settings say so.
    public init(_ frame: CVPixelBuffer) throws {
        guard CVPixelBufferGetPixelFormatType(frame) == kCVPixelFormatType_32BGRA else {
            throw Refused("the frame is not 32BGRA: set kCVPixelBufferPixelFormatTypeKey in the output's videoSettings")
        }
        CVPixelBufferLockBaseAddress(frame, .readOnly)
        defer { CVPixelBufferUnlockBaseAddress(frame, .readOnly) }
        let (width, height) = (CVPixelBufferGetWidth(frame), CVPixelBufferGetHeight(frame))
        var source = vImage_Buffer(
            data: CVPixelBufferGetBaseAddress(frame), height: vImagePixelCount(height), width: vImagePixelCount(width),
            rowBytes: CVPixelBufferGetBytesPerRow(frame)
        )
        var rgb = [UInt8](repeating: 0, count: width * height * 3)
        let status = rgb.withUnsafeMutableBytes { bytes -> vImage_Error in
            var target = vImage_Buffer(
                data: bytes.baseAddress, height: vImagePixelCount(height), width: vImagePixelCount(width), rowBytes: width * 3
            )
            return vImageConvert_BGRA8888toRGB888(&source, &target, vImage_Flags(kvImageNoFlags))
        }
        guard status == kvImageNoError else { throw Refused("vImage refuses the frame (\(status))") }
        try self.init(rgb: rgb, width: width, height: height)
    }
}

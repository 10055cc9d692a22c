// An image -> its likeliest classes, by Core ML. An actor: loading, preparing and running stay off the main thread.

import CoreML
import CryptoKit
import Foundation

public struct Prediction: Identifiable, Sendable {
    public let id: Int
    public let label: String
    public let score: Float
    public let share: Float
}

/// Public ed25519 key, 64 hexadecimal digits, that must have signed the bundle; empty takes unsigned bundles.
public let trustedKey = "@KEY@"

public actor Classifier {
    private let manifest: Manifest
    private let labels: [String]
    private let model: MLModel

    /// Verifies the bundle, compiles the model on its first use on this device, and loads it. Throws Refused.
    public init(bundle: URL) async throws {
        let digits = Array(trustedKey)
        let key = stride(from: 0, to: digits.count - 1, by: 2).compactMap { UInt8(String(digits[$0 ... $0 + 1]), radix: 16) }
        manifest = try Manifest.read(bundle: bundle, key: key.isEmpty ? nil : Data(key))
        guard manifest.target == "coreml" else {
            throw Refused("the bundle is for \(manifest.target), this app runs coreml; embed that bundle again")
        }
        let classes = manifest.output.shape[1]
        if let name = manifest.labels {
            let text = try String(contentsOf: bundle.appendingPathComponent(name), encoding: .utf8)
            labels = text.split(separator: "\n").map(String.init)
        } else {
            labels = (0 ..< classes).map { "class \($0)" }
        }
        guard labels.count == classes else {
            throw Refused("there are \(labels.count) labels for \(classes) classes; export and embed it again")
        }
        model = try await Classifier.open(bundle: bundle, manifest: manifest)
    }

    /// The likeliest classes, best first; equal scores stand in class order.
    public func run(_ image: Pixels, top: Int = 5) async throws -> [Prediction] {
        let tensor = try manifest.preprocess.tensor(image)
        let array = try MLMultiArray(shape: manifest.input.shape.map(NSNumber.init), dataType: .float32)
        array.withUnsafeMutableBufferPointer(ofType: Float.self) { buffer, _ in _ = buffer.update(fromContentsOf: tensor) }
        let input = try MLDictionaryFeatureProvider(dictionary: [manifest.input.name: array])
        let output = try await model.prediction(from: input)
        guard let found = output.featureValue(for: manifest.output.name)?.multiArrayValue, found.count == labels.count else {
            throw Refused("the engine has no output \(manifest.output.name) of \(labels.count) scores; export it again")
        }
        let scores = (0 ..< found.count).map { found[$0].floatValue }
        guard scores.allSatisfy(\.isFinite), let most = scores.max() else { throw Refused("the engine gave NaN or infinite scores") }
        let sum = scores.reduce(0) { $0 + exp($1 - most) }
        let order = scores.indices.sorted { (scores[$0], $1) > (scores[$1], $0) }
        return order.prefix(top).map {
            Prediction(id: $0, label: labels[$0], score: scores[$0], share: exp(scores[$0] - most) / sum)
        }
    }

    private static func units(_ name: String) throws -> MLComputeUnits {
        switch name {
        case "all": return .all
        case "cpuAndNeuralEngine": return .cpuAndNeuralEngine
        case "cpuAndGPU": return .cpuAndGPU
        case "cpuOnly": return .cpuOnly
        default: throw Refused("this loader does not know the compute units \(name); export and embed it again")
        }
    }

    /// Core ML keeps a compiled model; this keeps it beside the app's caches, by the hash of what it came from.
    private static func open(bundle: URL, manifest: Manifest) async throws -> MLModel {
        let joined = Data(manifest.files.values.sorted().joined().utf8)
        let name = SHA256.hash(data: joined).prefix(8).map { String(format: "%02x", $0) }.joined()
        let caches = try FileManager.default.url(for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let kept = caches.appendingPathComponent("\(name).mlmodelc")
        if !FileManager.default.fileExists(atPath: kept.path) {
            let compiled = try await MLModel.compileModel(at: bundle.appendingPathComponent(manifest.entry))
            try FileManager.default.moveItem(at: compiled, to: kept)
        }
        let configuration = MLModelConfiguration()
        configuration.computeUnits = try units(manifest.runtime.options.computeUnits)
        let model = try await MLModel.load(contentsOf: kept, configuration: configuration)
        let shape = model.modelDescription.inputDescriptionsByName[manifest.input.name]?.multiArrayConstraint?.shape
        guard shape?.map(\.intValue) == manifest.input.shape else {
            throw Refused("the engine's input is not \(manifest.input.shape); export and embed it again")
        }
        return model
    }
}

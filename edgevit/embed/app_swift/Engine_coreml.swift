// Core ML.

import CoreML
import CryptoKit
import Foundation

struct Engine {
    static let target = "coreml"
    private let model: MLModel
    private let manifest: Manifest

    /// Core ML keeps a compiled model; this keeps it among the app's caches, by the hash of what it came from.
    static func open(bundle: URL, manifest: Manifest) async throws -> Engine {
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
        return Engine(model: model, manifest: manifest)
    }

    /// Float32 `[3, H, W]` -> a score a class.
    func scores(_ tensor: [Float]) async throws -> [Float] {
        let array = try MLMultiArray(shape: manifest.input.shape.map(NSNumber.init), dataType: .float32)
        array.withUnsafeMutableBufferPointer(ofType: Float.self) { buffer, _ in _ = buffer.update(fromContentsOf: tensor) }
        let input = try MLDictionaryFeatureProvider(dictionary: [manifest.input.name: array])
        let output = try await model.prediction(from: input)
        guard let found = output.featureValue(for: manifest.output.name)?.multiArrayValue else {
            throw Refused("the engine has no output \(manifest.output.name); export and embed it again")
        }
        return (0 ..< found.count).map { found[$0].floatValue }
    }

    private static func units(_ name: String?) throws -> MLComputeUnits {
        switch name {
        case "all": return .all
        case "cpuAndNeuralEngine": return .cpuAndNeuralEngine
        case "cpuAndGPU": return .cpuAndGPU
        case "cpuOnly": return .cpuOnly
        default: throw Refused("this loader does not know the compute units \(name ?? "that are not named"); export and embed it again")
        }
    }
}

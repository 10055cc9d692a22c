// Core AI (iOS and macOS 27).

import CoreAI
import Foundation

struct Engine {
    static let target = "coreai"
    private let function: InferenceFunction
    private let manifest: Manifest

    /// Core AI specializes the model for this device on its first use (seconds) and keeps the result in a cache of its own.
    static func open(bundle: URL, manifest: Manifest) async throws -> Engine {
        let model = try await AIModel(contentsOf: bundle.appendingPathComponent(manifest.entry))
        guard let function = try model.loadFunction(named: "main") else {
            throw Refused("the engine has no function main; export and embed it again")
        }
        guard function.descriptor.inputNames == [manifest.input.name] else {
            throw Refused("the engine's inputs are \(function.descriptor.inputNames), not \(manifest.input.name); export and embed it again")
        }
        return Engine(function: function, manifest: manifest)
    }

    /// Float32 `[3, H, W]` -> a score a class.
    func scores(_ tensor: [Float]) async throws -> [Float] {
        let input = NDArray(scalars: tensor, shape: manifest.input.shape)
        var outputs = try await function.run(inputs: [manifest.input.name: input])
        guard let found = outputs.remove(manifest.output.name)?.ndArray else {
            throw Refused("the engine has no output \(manifest.output.name); export and embed it again")
        }
        let view = found.view(as: Float.self)
        let count = manifest.output.shape[1]
        guard view.isContiguous, found.shape == manifest.output.shape else {
            throw Refused("the engine's output is not \(manifest.output.shape) in one piece; export and embed it again")
        }
        return view.withUnsafePointer { start, _, _ in Array(UnsafeBufferPointer(start: start, count: count)) }
    }
}

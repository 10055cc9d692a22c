// Core AI, where the app was built with Xcode 27 and runs on iOS 27.

import Foundation

#if canImport(CoreAI)
import CoreAI

@available(iOS 27, *)
final class CoreAIEngine: Engine {
    private let function: InferenceFunction
    private let input: Job.Input
    private var array: NDArray
    private var found: [Float] = []
    let placement: [String: Any]? = nil // no part of the framework tells

    init(path: URL, input: Job.Input) async throws {
        let model = try await AIModel(contentsOf: path)
        guard let function = try model.loadFunction(named: "main") else { throw Failure("the engine has no function main") }
        self.function = function
        self.input = input
        array = NDArray(shape: input.shape, scalarType: .float32)
    }

    func prepare(_ values: [Float]) throws {
        array = NDArray(scalars: values, shape: input.shape)
    }

    func run() async throws {
        var outputs = try await function.run(inputs: [input.name: array])
        guard let name = outputs.names.first, let output = outputs.remove(name)?.ndArray else { throw Failure("the engine gave no output") }
        let view = output.view(as: Float.self)
        guard view.isContiguous else { throw Failure("the engine's output is not in one piece") }
        let count = output.shape.reduce(1, *)
        found = view.withUnsafePointer { start, _, _ in Array(UnsafeBufferPointer(start: start, count: count)) }
    }

    func scores() throws -> [Float] { found }
}
#endif

func coreAI(path: URL, input: Job.Input) async throws -> Engine {
    #if canImport(CoreAI)
    if #available(iOS 27, *) { return try await CoreAIEngine(path: path, input: input) }
    throw Failure("Core AI needs iOS 27, here is \(ProcessInfo.processInfo.operatingSystemVersionString)")
    #else
    throw Failure("the app was built without Core AI: build it with Xcode 27")
    #endif
}

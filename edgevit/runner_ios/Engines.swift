// One loaded engine: input prepared beforehand, one call an inference.

import CoreML
import Foundation

protocol Engine {
    /// Which operators the system would place where; nil where it does not tell.
    var placement: [String: Any]? { get }
    func prepare(_ values: [Float]) throws
    func run() async throws
    func scores() throws -> [Float]
}

func load(_ job: Job) async throws -> Engine {
    let path = Job.home.appendingPathComponent(try job.need(job.engine, "engine"))
    let input = try job.need(job.input, "input")
    switch try job.need(job.runner, "runner") {
    case "coreml": return try await CoreMLEngine(path: path, units: job.options?.units ?? "all", input: input)
    case "coreai": return try await coreAI(path: path, input: input)
    case let other: throw Failure("this app has no runner \(other)")
    }
}

final class CoreMLEngine: Engine {
    private let model: MLModel
    private let array: MLMultiArray
    private let provider: MLDictionaryFeatureProvider
    private var output: MLFeatureProvider?
    let placement: [String: Any]?

    init(path: URL, units: String, input: Job.Input) async throws {
        let kept = path.deletingLastPathComponent().appendingPathComponent("compiled.mlmodelc") // by content: its folder is
        if !FileManager.default.fileExists(atPath: kept.path) {
            try FileManager.default.moveItem(at: try await MLModel.compileModel(at: path), to: kept)
        }
        let configuration = MLModelConfiguration()
        switch units {
        case "all": configuration.computeUnits = .all
        case "cpuAndNeuralEngine": configuration.computeUnits = .cpuAndNeuralEngine
        case "cpuAndGPU": configuration.computeUnits = .cpuAndGPU
        case "cpuOnly": configuration.computeUnits = .cpuOnly
        default: throw Failure("this app does not know the compute units \(units)")
        }
        model = try await MLModel.load(contentsOf: kept, configuration: configuration)
        array = try MLMultiArray(shape: input.shape.map(NSNumber.init), dataType: .float32)
        provider = try MLDictionaryFeatureProvider(dictionary: [input.name: array])
        placement = await CoreMLEngine.placement(kept, configuration)
    }

    func prepare(_ values: [Float]) throws {
        array.withUnsafeMutableBufferPointer(ofType: Float.self) { buffer, _ in _ = buffer.update(fromContentsOf: values) }
    }

    func run() async throws {
        let model = model, provider = provider
        output = try { try model.prediction(from: provider) }() // the synchronous one: no task switch within the time
    }

    func scores() throws -> [Float] {
        guard let name = output?.featureNames.first, let found = output?.featureValue(for: name)?.multiArrayValue else {
            throw Failure("the engine gave no output")
        }
        return (0 ..< found.count).map { found[$0].floatValue }
    }

    private static func placement(_ path: URL, _ configuration: MLModelConfiguration) async -> [String: Any]? {
        guard #available(iOS 17.4, *), let plan = try? await MLComputePlan.load(contentsOf: path, configuration: configuration),
              case let .program(program) = plan.modelStructure, let main = program.functions["main"]
        else { return nil }
        var counts: [String: Int] = [:]
        var elsewhere: [String: Int] = [:]
        for operation in main.block.operations {
            guard let usage = plan.deviceUsage(for: operation) else { continue } // a constant
            switch usage.preferred {
            case .neuralEngine: counts["neural_engine", default: 0] += 1
            case .gpu:
                counts["gpu", default: 0] += 1
                elsewhere[operation.operatorName, default: 0] += 1
            case .cpu:
                counts["cpu", default: 0] += 1
                elsewhere[operation.operatorName, default: 0] += 1
            @unknown default: counts["unknown", default: 0] += 1
            }
        }
        return ["operators": counts, "off_neural_engine": elsewhere]
    }
}

// An image -> its likeliest classes. An actor: loading, preparing and running stay off the main thread.

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
    private let engine: Engine

    /// Verifies the bundle, compiles the model for this device on its first use, and loads it. Throws Refused.
    public init(bundle: URL) async throws {
        let digits = Array(trustedKey)
        let key = stride(from: 0, to: digits.count - 1, by: 2).compactMap { UInt8(String(digits[$0 ... $0 + 1]), radix: 16) }
        manifest = try Manifest.read(bundle: bundle, key: key.isEmpty ? nil : Data(key))
        guard manifest.target == Engine.target else {
            throw Refused("the bundle is for \(manifest.target), this app runs \(Engine.target); embed that bundle again")
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
        engine = try await Engine.open(bundle: bundle, manifest: manifest)
    }

    /// The likeliest classes, best first; equal scores stand in class order.
    public func run(_ image: Pixels, top: Int = 5) async throws -> [Prediction] {
        let tensor = try manifest.preprocess.tensor(image)
        let scores = try await engine.scores(tensor)
        guard scores.count == labels.count else {
            throw Refused("the engine gives \(scores.count) scores for \(labels.count) classes; export and embed it again")
        }
        guard scores.allSatisfy(\.isFinite), let most = scores.max() else { throw Refused("the engine gave NaN or infinite scores") }
        let sum = scores.reduce(0) { $0 + exp($1 - most) }
        let order = scores.indices.sorted { (scores[$0], $1) > (scores[$1], $0) }
        return order.prefix(top).map {
            Prediction(id: $0, label: labels[$0], score: scores[$0], share: exp(scores[$0] - most) / sum)
        }
    }
}

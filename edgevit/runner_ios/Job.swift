// What edgevit asks (job.json) and what is answered (record.json): schema 1 of edgevit.devices.in_app.

import Foundation

/// One line for the person who must act.
struct Failure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

struct Job: Decodable {
    struct Input: Decodable {
        let name: String
        let shape: [Int]
    }

    struct Options: Decodable {
        let units: String?
        enum CodingKeys: String, CodingKey {
            case units = "compute_units"
        }
    }

    let schema: Int
    let id: String
    let kind: String // about, check, round
    let trees: [String]? // of about: folders of engines, named by content
    let runner: String? // of check and round: coreml, coreai
    let engine: String?
    let options: Options?
    let input: Input?
    let count: Int? // of check: inputs in input.f32
    let warmupS: Double? // the rest of round, as for every runner of edgevit
    let minSamples: Int?
    let minSeconds: Double?
    let maxSeconds: Double?

    enum CodingKeys: String, CodingKey {
        case schema, id, kind, trees, runner, engine, options, input, count
        case warmupS = "warmup_s"
        case minSamples = "min_samples"
        case minSeconds = "min_seconds"
        case maxSeconds = "max_seconds"
    }

    static let schema = 1
    static let work = home.appendingPathComponent("Documents/edgevit")
    static let home = URL(fileURLWithPath: NSHomeDirectory())

    /// A path that edgevit gives is relative to the app's container.
    static func read(_ path: String) throws -> Job {
        let job = try JSONDecoder().decode(Job.self, from: Data(contentsOf: home.appendingPathComponent(path)))
        guard job.schema == schema else { throw Failure("the job has schema \(job.schema), this app \(schema): write the app again") }
        return job
    }

    /// What a key must hold for this kind of job.
    func need<T>(_ value: T?, _ name: String) throws -> T {
        guard let value else { throw Failure("a job of kind \(kind) has no \(name)") }
        return value
    }

    /// Float32 values that were pushed, `count` inputs one after the other.
    func inputs() throws -> [[Float]] {
        let size = try need(input, "input").shape.reduce(1, *)
        let data = try Data(contentsOf: Job.work.appendingPathComponent("input.f32"))
        guard data.count == size * 4 * (count ?? 1) else { throw Failure("input.f32 has \(data.count) bytes for \(size) values") }
        let values = data.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
        return stride(from: 0, to: values.count, by: size).map { Array(values[$0 ..< $0 + size]) }
    }
}

/// Writes the answer beside its place and renames it there: whole or absent.
func leave(_ answer: [String: Any], id: String) throws {
    let data = try JSONSerialization.data(withJSONObject: answer.merging(["schema": Job.schema, "id": id]) { own, _ in own })
    try FileManager.default.createDirectory(at: Job.work, withIntermediateDirectories: true)
    try data.write(to: Job.work.appendingPathComponent("record.json"), options: .atomic)
}

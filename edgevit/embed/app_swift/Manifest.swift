// The bundle's manifest, verified before anything of the bundle is used.

import CryptoKit
import Foundation

/// What an app's user or maker can fix: one line.
public struct Refused: Error, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}

public struct Preprocess: Decodable, Sendable {
    public let size: [Int]
    public let resize: String
    public let cropPct: Double
    public let interpolation: String
    public let mean: [Float]
    public let std: [Float]

    enum CodingKeys: String, CodingKey {
        case size, resize, interpolation, mean, std
        case cropPct = "crop_pct"
    }
}

public struct Manifest: Decodable, Sendable {
    public struct Tensor: Decodable, Sendable {
        public let name: String
        public let shape: [Int]
    }

    public struct Runtime: Decodable, Sendable {
        public struct Options: Decodable, Sendable {
            public let computeUnits: String? // of coreml
            enum CodingKeys: String, CodingKey {
                case computeUnits = "compute_units"
            }
        }

        public let options: Options
    }

    public let schema: Int
    public let target: String
    public let precision: String
    public let runtime: Runtime
    public let input: Tensor
    public let output: Tensor
    public let preprocess: Preprocess
    public let labels: String?
    public let entry: String
    public let files: [String: String]

    static let schema = 1

    /// Reads the manifest of a bundle whose files all have the sha256 it names. `key`: 32 bytes of an ed25519 public key
    /// that must have signed it.
    public static func read(bundle: URL, key: Data? = nil) throws -> Manifest {
        let data: Data
        do {
            data = try Data(contentsOf: bundle.appendingPathComponent("manifest.json"))
        } catch {
            throw Refused("\(bundle.lastPathComponent) is not a bundle: it has no manifest.json")
        }
        if let key { try checkSignature(bundle: bundle, data: data, key: key) }
        let manifest: Manifest
        do {
            manifest = try JSONDecoder().decode(Manifest.self, from: data)
        } catch {
            throw Refused("manifest.json is incomplete or malformed (\(error)); export and embed it again")
        }
        guard manifest.schema == schema else {
            throw Refused("manifest.json has schema \(manifest.schema); this loader reads schema \(schema)")
        }
        for (name, digest) in manifest.files { try checkFile(bundle: bundle, name: name, digest: digest) }
        try manifest.checkSizes()
        return manifest
    }

    private static func checkSignature(bundle: URL, data: Data, key: Data) throws {
        guard let signature = try? Data(contentsOf: bundle.appendingPathComponent("manifest.sig")) else {
            throw Refused("\(bundle.lastPathComponent) is not signed: it has no manifest.sig")
        }
        let publicKey = try Curve25519.Signing.PublicKey(rawRepresentation: key)
        guard publicKey.isValidSignature(signature, for: data) else {
            throw Refused("manifest.sig is not by this app's key, or manifest.json was changed")
        }
    }

    private static func checkFile(bundle: URL, name: String, digest: String) throws {
        let parts = name.split(separator: "/", omittingEmptySubsequences: false)
        if name.contains("\\") || name.contains(":") || parts.contains(where: { ["", ".", ".."].contains($0) }) {
            throw Refused("the manifest names \(name), which is not a path inside the bundle")
        }
        guard let handle = try? FileHandle(forReadingFrom: bundle.appendingPathComponent(name)) else {
            throw Refused("the bundle is incomplete: \(name) is missing; export and embed it again")
        }
        defer { try? handle.close() }
        var hash = SHA256()
        while let part = try handle.read(upToCount: 1 << 20), !part.isEmpty { hash.update(data: part) }
        let found = hash.finalize().map { String(format: "%02x", $0) }.joined()
        if found != digest {
            throw Refused("\(name) is not the file that was exported (sha256 differs); export and embed it again")
        }
    }

    private func checkSizes() throws {
        guard preprocess.size.count == 2, preprocess.mean.count == 3, preprocess.std.count == 3 else {
            throw Refused("manifest.json has no usable preprocessing; export and embed it again")
        }
        let wanted = [1, 3] + preprocess.size
        if input.shape != wanted {
            throw Refused("the input is \(input.shape), preprocessing makes \(wanted); export and embed it again")
        }
        if output.shape.count != 2 || output.shape[0] != 1 {
            throw Refused("the output is \(output.shape), expected [1, classes]; export and embed it again")
        }
    }
}

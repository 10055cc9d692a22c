// Preprocessing gives the tensors that accuracy was measured with.

import Foundation
import XCTest

@testable import Classifier

final class GoldenTests: XCTestCase {
    private let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()

    private struct Index: Decodable {
        struct Vector: Decodable {
            let image: String
            let tensor: String
            let width: Int
            let height: Int
        }

        let preprocess: Preprocess
        let vectors: [Vector]
    }

    func testPreprocessingIsExact() throws {
        let golden = root.appendingPathComponent("golden")
        let index = try JSONDecoder().decode(Index.self, from: Data(contentsOf: golden.appendingPathComponent("golden.json")))
        for vector in index.vectors {
            let file = try Data(contentsOf: golden.appendingPathComponent(vector.image)) // binary PPM: pixels at its end
            let pixels = [UInt8](file.suffix(vector.width * vector.height * 3))
            let tensor = try index.preprocess.tensor(Pixels(rgb: pixels, width: vector.width, height: vector.height))
            let want = try Data(contentsOf: golden.appendingPathComponent(vector.tensor))
            XCTAssertEqual(tensor.withUnsafeBytes { Data($0) }, want, vector.image)
        }
    }

    func testTheBundleVerifies() throws {
        let bundle = root.appendingPathComponent("bundle")
        XCTAssertEqual(try Manifest.read(bundle: bundle).target, Engine.target)
    }
}

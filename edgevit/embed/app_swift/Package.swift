// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "Classifier",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "Classifier", targets: ["Classifier"])],
    targets: [
        .target(name: "Classifier"),
        .testTarget(name: "ClassifierTests", dependencies: ["Classifier"]),
    ]
)

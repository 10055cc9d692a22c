// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "Classifier",
    platforms: [@PLATFORMS@],
    products: [.library(name: "Classifier", targets: ["Classifier"])],
    targets: [
        .target(name: "Classifier"),
        .testTarget(name: "ClassifierTests", dependencies: ["Classifier"]),
    ]
)

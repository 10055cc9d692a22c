// swift-tools-version: 5.9
// An app that Xcode opens as it is: choose a team once, then run it on the phone.
import AppleProductTypes
import PackageDescription

let package = Package(
    name: "Runner",
    platforms: [.iOS("16.0")],
    products: [
        .iOSApplication(
            name: "Runner",
            targets: ["Runner"],
            bundleIdentifier: "@APP@",
            teamIdentifier: "@TEAM@",
            displayVersion: "1.0",
            bundleVersion: "1",
            supportedDeviceFamilies: [.pad, .phone],
            supportedInterfaceOrientations: [.portrait],
            additionalInfoPlistContentFilePath: "Info.plist"
        ),
    ],
    targets: [.executableTarget(name: "Runner", path: "Sources")]
)

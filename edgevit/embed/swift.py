"""App `swift`: a Swift package for Core ML or Core AI, with a SwiftUI sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.embed.base import check_filter, template, write_readme, write_text

if TYPE_CHECKING:
    from edgevit.bundle import Bundle

TEMPLATES = "edgevit.embed.app_swift"
PLACES = {
    "Package.swift": "Package.swift",
    "Manifest.swift": "Sources/Classifier/Manifest.swift",
    "Preprocessing.swift": "Sources/Classifier/Preprocessing.swift",
    "Frame.swift": "Sources/Classifier/Frame.swift",
    "Classifier.swift": "Sources/Classifier/Classifier.swift",
    "Camera.swift": "Sample/Camera.swift",
    "ContentView.swift": "Sample/ContentView.swift",
    "GoldenTests.swift": "Tests/ClassifierTests/GoldenTests.swift",
}


RUNTIMES = {"coreml": "Core ML", "coreai": "Core AI"}
PLATFORMS = {"coreml": ".iOS(.v16), .macOS(.v13)", "coreai": '.iOS("27.0"), .macOS("27.0")'}


class Swift:
    """The loader in Swift. Parsed here, compiled on a Mac."""

    name = "swift"
    targets = tuple(RUNTIMES)
    images = "ppm"

    def write(self, bundle: Bundle, folder: Path, key: str | None) -> None:
        """Sources, sample, test and README."""
        check_filter(self.name, bundle)
        target = bundle.manifest["target"]
        for name, place in {**PLACES, f"Engine_{target}.swift": "Sources/Classifier/Engine.swift"}.items():
            write_text(folder / place, template(TEMPLATES, name, KEY=key or "", PLATFORMS=PLATFORMS[target]))
        write_readme(TEMPLATES, bundle, folder, runtime=RUNTIMES[target])

    def runtime_bytes(self, bundle: Bundle) -> int | None:
        """Both are part of the system."""
        return 0

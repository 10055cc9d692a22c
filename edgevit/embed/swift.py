"""App `swift`: a Swift package for Core ML, with a SwiftUI sample."""

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
    "Classifier.swift": "Sources/Classifier/Classifier.swift",
    "ContentView.swift": "Sample/ContentView.swift",
    "GoldenTests.swift": "Tests/ClassifierTests/GoldenTests.swift",
}


class Swift:
    """The loader in Swift. Parsed here, compiled on a Mac."""

    name = "swift"
    targets = ("coreml",)
    images = "ppm"

    def write(self, bundle: Bundle, folder: Path, key: str | None) -> None:
        """Sources, sample, test and README."""
        check_filter(self.name, bundle)
        for name, place in PLACES.items():
            write_text(folder / place, template(TEMPLATES, name).replace("@KEY@", key or ""))
        write_readme(TEMPLATES, bundle, folder)

    def runtime_bytes(self, bundle: Bundle) -> int | None:
        """Core ML is part of the system."""
        return 0

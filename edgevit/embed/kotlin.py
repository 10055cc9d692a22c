"""App `kotlin`: an Android library module for ONNX Runtime or ExecuTorch, with a sample activity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.embed.base import check_filter, template, write_readme, write_text

if TYPE_CHECKING:
    from edgevit.bundle import Bundle

TEMPLATES = "edgevit.embed.app_kotlin"
MAIN, TEST = "src/main/java/edgevit", "src/androidTest/java/edgevit"
PLACES = {
    "Bundle.kt": f"{MAIN}/Bundle.kt",
    "Classifier.kt": f"{MAIN}/Classifier.kt",
    "Preprocess.kt": f"{MAIN}/Preprocess.kt",
    "Trusted.kt": f"{MAIN}/Trusted.kt",
    "GoldenTest.kt": f"{TEST}/GoldenTest.kt",
    "MainActivity.kt": "sample/MainActivity.kt",
    "build.gradle.kts": "build.gradle.kts",
}
LIBRARIES = {"ort": "com.microsoft.onnxruntime:onnxruntime-android", "executorch": "org.pytorch:executorch-android"}
UNSIGNED = "val KEY: String? = null"


class Kotlin:
    """The loader in Kotlin. Parsed here, compiled where an Android SDK is."""

    name = "kotlin"
    targets = tuple(LIBRARIES)
    images = "ppm"

    def write(self, bundle: Bundle, folder: Path, key: str | None) -> None:
        """Sources, sample, test, build file and README."""
        check_filter(self.name, bundle)
        target = bundle.manifest["target"]
        dependency = f"{LIBRARIES[target]}:{bundle.manifest['runtime']['version'].split('+')[0]}"
        signed = f'val KEY: String? = "{key}"' if key else UNSIGNED
        for name, place in {**PLACES, f"Engine_{target}.kt": f"{MAIN}/Engine.kt"}.items():
            text = template(TEMPLATES, name, DEPENDENCY=dependency).replace(UNSIGNED, signed)
            write_text(folder / place, text)
        write_readme(TEMPLATES, bundle, folder, dependency=dependency)

    def runtime_bytes(self, bundle: Bundle) -> int | None:
        """Of the Android library: not known here."""
        return None

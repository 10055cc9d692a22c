"""App `cpp`: a CMake project in C++17 for OpenVINO, ONNX Runtime or TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.embed.base import installed_bytes, template, write_readme, write_text

if TYPE_CHECKING:
    from edgevit.bundle import Bundle

TEMPLATES = "edgevit.embed.app_cpp"
SHARED = ("bundle", "classifier", "json", "preprocess", "sha256")
SIGNED = ("signature.hpp", "signature.cpp")  # compiled where the app has a key
HEADERS = ("engine.hpp", "ppm.hpp", "refused.hpp")
CONFIGURE = {
    "openvino": 'cmake -B build -DOpenVINO_DIR="$(python -c "import openvino as o; print(o.__path__[0])")/cmake"',
    "ort": "cmake -B build -DORT_ROOT=FOLDER   # of ONNX Runtime's release: include/ and lib/",
    "trt": "cmake -B build   # on the device; -DTENSORRT_ROOT=FOLDER where TensorRT is not installed",
}
RUNTIMES = {"openvino": "openvino", "ort": "onnxruntime", "trt": "tensorrt"}


class Cpp:
    """The loader in C++: verification, Pillow's resize, and one engine behind five functions."""

    name = "cpp"
    targets = tuple(CONFIGURE)
    images = "ppm"

    def write(self, bundle: Bundle, folder: Path, key: str | None) -> None:
        """Sources, test, CMakeLists.txt and README."""
        target = bundle.manifest["target"]
        sources = [*HEADERS, *SIGNED, "main.cpp", f"engine_{target}.cpp"]
        sources += [f"{name}.{suffix}" for name in SHARED for suffix in ("hpp", "cpp")]
        for name in sources:
            write_text(folder / "src" / name, template(TEMPLATES, name))
        write_text(folder / "test" / "golden_test.cpp", template(TEMPLATES, "golden_test.cpp"))
        write_text(folder / "CMakeLists.txt", template(TEMPLATES, "CMakeLists.txt", TARGET=target, KEY=key or ""))
        version = "10 or later" if target == "trt" else bundle.manifest["runtime"]["version"].split("-")[0]
        runtime = f"{RUNTIMES[target]} {version}"
        write_readme(TEMPLATES, bundle, folder, configure=CONFIGURE[target], runtime=runtime)

    def runtime_bytes(self, bundle: Bundle) -> int | None:
        """Of the Python package, whose libraries are the same; None where it is not installed."""
        return installed_bytes(RUNTIMES[bundle.manifest["target"]])

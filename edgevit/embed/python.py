"""App `python`: a package that needs numpy, Pillow and the bundle's one runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.embed.base import installed_bytes, template, write_readme, write_text

if TYPE_CHECKING:
    from edgevit.bundle import Bundle

TEMPLATES, PACKAGE = "edgevit.embed.app_python", "classifier"
# The files are modules of edgevit, checked like any other; in the app they stand under the app's own name.
FILES = ("__init__.py", "__main__.py", "classifier.py", "errors.py", "trusted.py")
RENAMED = {
    f"from {TEMPLATES} import engine_ort as engine": f"from {PACKAGE} import engine",
    TEMPLATES: PACKAGE,
    "from edgevit.preprocess import": f"from {PACKAGE}.preprocess import",
    "from edgevit.errors import": f"from {PACKAGE}.errors import",
}
UNSIGNED = "KEY: str | None = None"
RUNTIMES = {"ort": "onnxruntime", "openvino": "openvino", "executorch": "executorch", "coreai": "coreai-core"}


class Python:
    """The loader in Python. `preprocess.py` is edgevit's own file."""

    name = "python"
    targets = tuple(RUNTIMES)
    images = "ppm"

    def write(self, bundle: Bundle, folder: Path, key: str | None) -> None:
        """The package, its test, requirements and README."""
        import PIL

        target = bundle.manifest["target"]
        package = folder / PACKAGE
        for name in FILES:
            write_text(package / name, _own(template(TEMPLATES, name)))
        if key:
            trusted = package / "trusted.py"
            write_text(trusted, trusted.read_text(encoding="utf-8").replace(UNSIGNED, f'KEY: str | None = "{key}"'))
        write_text(package / "engine.py", _own(template(TEMPLATES, f"engine_{target}.py")))
        write_text(package / "preprocess.py", _own(template("edgevit", "preprocess.py")))
        write_text(folder / "test_golden.py", _own(template(TEMPLATES, "golden_test.py")))
        runtime = f"{RUNTIMES[target]}=={_release(target, bundle.manifest['runtime']['version'])}"
        pillow = PIL.__version__.split(".")[0]
        needed = ["numpy", f"pillow>={pillow}  # older ones may round a resize in another order", runtime]
        needed += ["cryptography"] if key else []
        write_text(folder / "requirements.txt", "\n".join(needed) + "\n")
        write_readme(TEMPLATES, bundle, folder, runtime=runtime)

    def runtime_bytes(self, bundle: Bundle) -> int | None:
        """Of the runtime's Python package, without numpy and Pillow."""
        return installed_bytes(RUNTIMES[bundle.manifest["target"]])


def _own(text: str) -> str:
    for old, new in RENAMED.items():
        text = text.replace(old, new)
    return text


def _release(target: str, built: str) -> str:
    """What pip calls the version that the manifest names."""
    from importlib import import_module

    return str(import_module(f"{TEMPLATES}.engine_{target}").release(built))

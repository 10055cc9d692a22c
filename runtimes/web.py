"""Target `web`: a folder for any web server: page, worker, model, and onnxruntime-web's files (WASM, WebGPU)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import MissingExtra, RuntimeRefusal
from edgevit.export.to_half import to_half
from edgevit.export.to_onnx import to_onnx
from edgevit.quant.policies import POLICIES
from edgevit.runtimes.base import Policy, Session
from edgevit.runtimes.ort import INT8_CONFIG, Ort, import_ort
from edgevit.stages import Engine, Graph, Refusal

if TYPE_CHECKING:
    import numpy as np

PACKAGE = "onnxruntime-web"
PLACE = "EDGEVIT_ORT_WEB"
PAGE = ("index.html", "page.js", "parts.js", "style.css", "engine.js", "worker.js", "preprocess.js", "check.js")
WASM = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
WEBGPU = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
NOTICES = ("LICENSE", "ThirdPartyNotices.txt")


@dataclass(frozen=True)
class Web:
    """onnxruntime-web, checked in a real browser.

    ort_web: folder of the npm package onnxruntime-web; "" looks where npm installs. backend: `auto` puts WebGPU's files
    beside WASM's for float models, and the page takes it where the browser has it; `wasm` leaves them out.
    """

    ort_web: str = ""
    backend: str = "auto"

    name = "web"
    extra = "web"
    runner = "web"
    unverified = (
        "speed on the device, and how many threads it gives a page",
        "numbers and speed on the device's GPU: the check runs WASM",
    )
    policy = Policy(
        precisions=("fp32", "fp16", "int8"),
        int8="int8",
        # WASM multiplies 16-bit pairs and sums in 32 bits: exact for all 8 bits, on any CPU below it
        scheme=POLICIES["ort"],
        rewrites=Ort.policy.rewrites,
        lowering="gather",
        forms=Ort.policy.forms,
        explicit=True,
        # fp32: same operators, other summation order. fp16: 11 bits of value, rounded some hundred times on the way
        tolerance={"fp32": 1e-4, "fp16": 1e-2, "int8": None},
    )

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "wasm"):
            raise RuntimeRefusal(f"backend={self.backend} is not one of auto, wasm")

    @property
    def checked_by(self) -> str:
        """The engine, in this machine's browser, by version."""
        from edgevit.devices.runner_web import chromium_version, find_chromium

        found = find_chromium()
        return f"the engine, in headless Chromium {chromium_version(found)}" if found else "the engine, in Chromium"

    def version(self) -> str:
        """Version of the npm package."""
        import_ort()
        return str(_described(self.folder())["version"])

    def folder(self) -> Path:
        """Where the npm package lies. Raises MissingExtra with the line to type; nothing is downloaded."""
        named = self.ort_web or os.environ.get(PLACE)
        if named:
            if not (Path(named) / "package.json").is_file():
                raise MissingExtra(f"{named} is not the folder of the npm package {PACKAGE} (no package.json)")
            return Path(named)
        for place in _places():
            if (place / PACKAGE / "package.json").is_file():
                return place / PACKAGE
        raise MissingExtra(
            f"target web needs {PACKAGE} in ./node_modules, npm's global folder, --option ort_web=DIR "
            f"or the environment's {PLACE}: npm install {PACKAGE}"
        )

    def resolve(self, precision: str) -> str:
        """As asked: WASM computes the same everywhere."""
        return precision

    def runs_here(self, precision: str = "") -> str | None:
        """None where a Chromium is installed."""
        from edgevit.devices.runner_web import INSTALL, find_chromium

        return None if find_chromium() else f"Chromium is not installed; {INSTALL}"

    def refuses(self, graph: Graph) -> list[Refusal]:
        """Whatever torch's exporter takes: the WASM build holds ONNX Runtime's CPU operators."""
        return []

    def build(self, graph: Graph, folder: Path, precision: str) -> Engine:
        """Write the model, the page and onnxruntime-web's files."""
        if graph.inputs.batch != 1:
            raise RuntimeRefusal(
                f"target web shows one image at a time, and this batch is {graph.inputs.batch}; drop it"
            )
        version = self.version()
        to_onnx(to_half(graph) if precision == "fp16" else graph, folder / "model.onnx")
        webgpu = self.backend == "auto" and precision != "int8"
        options = {
            "session_config": INT8_CONFIG if precision == "int8" else {},
            "backends": ["webgpu", "wasm"] if webgpu else ["wasm"],
        }
        engine = {"model": "model.onnx", "precision": precision, **options}
        (folder / "engine.json").write_text(json.dumps(engine, indent=2) + "\n", encoding="utf-8")
        for name in PAGE:
            (folder / name).write_bytes(resources.files("edgevit.web").joinpath(name).read_bytes())
        copied = self._copy_runtime(folder / "ort", (*WASM, *(WEBGPU if webgpu else ())))
        files = ("model.onnx", "engine.json", *PAGE, *copied)
        return Engine(folder, self.name, version, precision, PAGE[0], files, graph.inputs, options)

    def _copy_runtime(self, to: Path, names: tuple[str, ...]) -> list[str]:
        """onnxruntime-web's files with their licence: npm's package holds none, the Python package the same."""
        source = self.folder()
        missing = [name for name in names if not (source / "dist" / name).is_file()]
        if missing:
            version = _described(source)["version"]
            raise RuntimeRefusal(
                f"{PACKAGE} {version} in {source} lacks {', '.join(missing)}; edgevit knows 1.30: "
                f"npm install {PACKAGE}@1.30"
            )
        to.mkdir()
        python = Path(import_ort().__file__).parent
        for name in names:
            shutil.copyfile(source / "dist" / name, to / name)
        for name in NOTICES:
            shutil.copyfile((source if (source / name).is_file() else python) / name, to / name)
        return [f"{to.name}/{name}" for name in (*names, *NOTICES)]

    def open(self, engine: Engine, threads: int | None = None) -> Session:
        """The bundle's own page and worker in a headless Chromium, on WASM."""
        return WebSession(engine, threads)


def _places() -> list[Path]:
    """Where npm installs, nearest first: ./node_modules, this Python environment's, the global one."""
    places = [Path.cwd() / "node_modules", Path(sys.prefix) / "node_modules"]
    npm = shutil.which("npm")
    if npm:
        done = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, check=False)
        places += [Path(done.stdout.strip())] if done.returncode == 0 and done.stdout.strip() else []
    return places


def _described(package: Path) -> dict[str, Any]:
    """package.json of onnxruntime-web."""
    try:
        found = json.loads((package / "package.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RuntimeRefusal(f"{package / 'package.json'} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("name") != PACKAGE or "version" not in found:
        raise RuntimeRefusal(f"{package} is not the npm package {PACKAGE}; give its folder: ort_web=DIR")
    return found


class WebSession:
    """One page of one browser. Both end with this object, or with the process."""

    def __init__(self, engine: Engine, threads: int | None, backend: str = "wasm", flags: tuple[str, ...] = ()) -> None:
        from edgevit.devices.runner_web import INSTALL, Browser, find_chromium

        if find_chromium() is None:
            raise MissingExtra(f"a web bundle is checked and evaluated in Chromium, which is not installed; {INSTALL}")
        try:
            self.browser = Browser(engine.folder, threads, backend, flags)
        except RuntimeError as error:
            raise RuntimeRefusal(f"{PACKAGE} cannot load {engine.folder / 'model.onnx'}: {error}") from error

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """One inference, float32 bytes there and back."""
        return self._ask("run", images.tobytes())

    def classify(self, image: bytes, preprocess: dict[str, Any]) -> np.ndarray[Any, Any]:
        """Outputs for an image file that the page itself decodes and prepares."""
        return self._ask("classify", image, preprocess=preprocess)

    def _ask(self, kind: str, body: bytes, **settings: Any) -> np.ndarray[Any, Any]:
        import numpy as np

        try:
            facts, answer = self.browser.ask(kind, body, **settings)
        except RuntimeError as error:
            raise RuntimeRefusal(f"{PACKAGE} in Chromium {self.browser.version} failed: {error}") from error
        return np.frombuffer(answer, np.float32).reshape(facts["dims"])

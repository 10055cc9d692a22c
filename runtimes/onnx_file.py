"""Target `onnx`: a plain ONNX file, checked by running it on ONNX Runtime with every optimization off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import missing_extra
from edgevit.export.to_half import to_half
from edgevit.export.to_onnx import to_onnx
from edgevit.quant.policies import POLICIES
from edgevit.runtimes.base import Policy, Session
from edgevit.runtimes.ort import OrtSession
from edgevit.stages import Engine, Graph, Refusal


@dataclass(frozen=True)
class OnnxFile:
    """The interchange file itself: for tools downstream of edgevit."""

    name = "onnx"
    extra = "onnx"
    runner = "ort"
    checked_by = "the file as written, in ONNX Runtime with optimizations off"
    unverified = ("what the tool that reads this file makes of it",)
    policy = Policy(
        precisions=("fp32", "fp16", "int8", "w8a16", "w8", "w4", "fp8"),
        others=("w8a16", "w8", "w4", "fp8"),
        int8="int8",
        scheme=POLICIES["onnx"],
        rewrites=("fold_batch_norm", "fold_layer_scale", "fold_attention_scale"),
        lowering="gather",
        tolerance={
            "fp32": 1e-4,
            "fp16": None,
            "int8": None,
            "w8a16": None,
            "w8": None,
            "w4": None,
            "fp8": None,
        },  # fp32: same operators, other summation order. fp16: a rounded key may pick another, nearly equal, token
    )

    def version(self) -> str:
        """Version of the onnx package."""
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise missing_extra(self.extra, error) from error
        return str(onnx.__version__)

    def resolve(self, precision: str) -> str:
        """Names are exact already."""
        return precision

    def runs_here(self, precision: str = "") -> str | None:
        """It does."""
        return None

    def refuses(self, graph: Graph) -> list[Refusal]:
        """Whatever torch's exporter takes; it names the operator itself when it does not."""
        return []

    def build(self, graph: Graph, folder: Path, precision: str) -> Engine:
        """Write `model.onnx`."""
        to_onnx(to_half(graph) if precision == "fp16" else graph, folder / "model.onnx")
        options: dict[str, Any] = {"session_config": {}}
        files = ("model.onnx",)
        return Engine(folder, self.name, self.version(), precision, files[0], files, graph.inputs, options)

    def open(self, engine: Engine, threads: int | None = None) -> Session:
        """Open with optimizations off: the file as written, not as a runtime would change it."""
        return OrtSession(engine, threads, optimize=False)

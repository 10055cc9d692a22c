"""Target `ort`: ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import RuntimeRefusal, missing_extra
from edgevit.export.to_onnx import to_onnx
from edgevit.quant.policies import POLICIES
from edgevit.runtimes.base import Policy, Session
from edgevit.runtimes.cpu import has_wide_sums, is_arm
from edgevit.stages import Engine, Graph, Refusal

if TYPE_CHECKING:
    import numpy as np

# MatMulAddFusion turns a Linear's MatMul + Add into a float Gemm before the integer fusion looks; nothing would run in
# int8. The name is part of the session's configuration, and so of the manifest.
INT8_CONFIG = {"optimization.disable_specified_optimizers": "MatMulAddFusion"}
# MatMulNBits rounds its input to 8 bits, group by group, unless it is told to compute in float32 (level 1).
W4_CONFIG = {"session.qdq_matmulnbits_accuracy_level": "1"}
CONFIG = {"fp32": {}, "w4": W4_CONFIG}  # any other precision: INT8_CONFIG


@dataclass(frozen=True)
class Ort:
    """ONNX Runtime, CPU execution provider."""

    name = "ort"
    extra = "ort"
    runner = "ort"
    checked_by = "the engine, in ONNX Runtime on this CPU"
    unverified = ()
    policy = Policy(
        precisions=("fp32", "int8", "int8+w7", "int8+s8", "w8a16", "w8", "w4"),
        others=("w8a16", "w8", "w4"),
        int8="int8",
        scheme=POLICIES["ort"],
        schemes={"int8+w7": POLICIES["ort-w7"], "int8+s8": POLICIES["ort-s8"]},
        rewrites=(
            "fold_batch_norm",
            "fold_layer_scale",
            "patches_as_linear",
            "split_qkv",
            "attention_by_head",
            "drop_unread_tokens",
            "fold_norm_affine",
            "drop_batch_axis",
        ),
        lowering="gather",
        forms=("split_qkv", "attention_by_head", "drop_batch_axis"),
        explicit=True,
        tolerance={
            "fp32": 1e-4,
            "int8": None,
            "int8+w7": None,
            "int8+s8": None,
            "w8a16": None,
            "w8": None,
            "w4": None,
        },  # fp32: same operators, other summation order
    )

    def version(self) -> str:
        """Version of the onnxruntime package."""
        return str(import_ort().__version__)

    def resolve(self, precision: str) -> str:
        """`int8` is what this machine computes exactly: 7-bit weights where sums saturate, signed activations on ARM.

        A bundle for another machine names its own; `int8+w7` is right on every x86.
        """
        if precision != "int8":
            return precision
        return "int8+s8" if is_arm() else "int8" if has_wide_sums() else "int8+w7"

    def runs_here(self, precision: str = "") -> str | None:
        """It does."""
        return None

    def refuses(self, graph: Graph) -> list[Refusal]:
        """Whatever torch's exporter takes; it names the operator itself when it does not."""
        return []

    def build(self, graph: Graph, folder: Path, precision: str) -> Engine:
        """Write `model.onnx`, and the session options it needs."""
        version = self.version()
        to_onnx(graph, folder / "model.onnx")
        options = {"session_config": CONFIG.get(precision, INT8_CONFIG)}
        files = ("model.onnx",)
        return Engine(folder, self.name, version, precision, files[0], files, graph.inputs, options)

    def open(self, engine: Engine, threads: int | None = None) -> Session:
        """Open with the engine's session options."""
        return OrtSession(engine, threads)


def import_ort() -> Any:
    """The onnxruntime module, with the telemetry that it switches on at import (1.29 and later) switched off."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise missing_extra("ort", error) from error
    return onnxruntime


class OrtSession:
    """An ONNX Runtime session on the CPU."""

    def __init__(self, engine: Engine, threads: int | None, optimize: bool = True) -> None:
        ort = import_ort()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        for key, value in engine.options.get("session_config", {}).items():
            options.add_session_config_entry(key, value)
        path = engine.folder / engine.entry
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # onnxruntime raises a dozen private exception classes that share no base but Exception
            raise RuntimeRefusal(f"ONNX Runtime {ort.__version__} cannot load {path.name}: {error}") from error
        self.name = engine.inputs.name

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """One inference."""
        out: np.ndarray[Any, Any] = self.session.run(None, {self.name: images})[0]
        return out

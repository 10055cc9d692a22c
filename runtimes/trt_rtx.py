"""Target `trt-rtx`: a TensorRT-RTX engine, built ahead of time on any x86 machine, without a GPU.

The engine is an intermediate form for the named GPUs; the driver of one of them compiles it when it is loaded. Jetson
boards (compute capability 8.7 and 11.0) are not among them: target `trt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevit.errors import RuntimeRefusal, missing_extra
from edgevit.runtimes import trt_typed
from edgevit.runtimes.base import Session
from edgevit.runtimes.cuda_session import CudaSession, no_gpu
from edgevit.runtimes.ort import OrtSession
from edgevit.stages import Engine, Graph, Refusal

ENGINE = "model.engine"
CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
WITHOUT_FLOAT8 = {"SM75", "SM80", "SM86"}


@dataclass(frozen=True)
class TrtRtx:
    """TensorRT-RTX. compute: compute capabilities that the engine is for, separated by commas."""

    compute: str = "SM86,SM89,SM120"

    name = "trt-rtx"
    extra = "trt-rtx"
    runner = ""
    policy = trt_typed.POLICY

    def __post_init__(self) -> None:
        unknown = [c for c in self.capabilities if c not in CAPABILITIES]
        if unknown:
            raise RuntimeRefusal(
                f"compute={self.compute}: TensorRT-RTX builds for {', '.join(CAPABILITIES)}, not {unknown[0]!r}"
            )

    @property
    def capabilities(self) -> tuple[str, ...]:
        """As names, in order."""
        return tuple(self.compute.split(","))

    @property
    def checked_by(self) -> str:
        """The engine where there is a GPU for it, else the file it was built from."""
        return trt_typed.CHECKED_BY if self.runs_here() else "the engine, on this GPU"

    @property
    def unverified(self) -> tuple[str, ...]:
        """What a GPU must still tell."""
        return ("that a GPU loads the engine", trt_typed.NUMBERS, "latency") if self.runs_here() else ()

    def version(self) -> str:
        """Version of the tensorrt_rtx package."""
        return str(import_rtx().__version__)

    def resolve(self, precision: str) -> str:
        """`int8` is int8 with float16 around it; fp8 needs GPUs that have it."""
        without = WITHOUT_FLOAT8.intersection(self.capabilities)
        if precision == "fp8" and without:
            able = ",".join(c for c in self.capabilities if c not in WITHOUT_FLOAT8) or "SM89"
            raise RuntimeRefusal(f"{min(without)} has no 8-bit floats; pass --option compute={able}, or use int8")
        return trt_typed.resolve(precision)

    def runs_here(self, precision: str = "") -> str | None:
        """On a GPU that torch sees."""
        return no_gpu()

    def refuses(self, graph: Graph) -> list[Refusal]:
        """What is known beforehand; the parser names the rest when it builds."""
        return trt_typed.refused(graph)

    def build(self, graph: Graph, folder: Path, precision: str) -> Engine:
        """Write `model.onnx`, and `model.engine` from it."""
        version = self.version()
        trt_typed.write(graph, folder, precision)
        (folder / ENGINE).write_bytes(build_engine(folder / trt_typed.ONNX, self.capabilities))
        options = {"compute": list(self.capabilities)}
        files = (ENGINE, trt_typed.ONNX)
        return Engine(folder, self.name, version, precision, ENGINE, files, graph.inputs, options)

    def open(self, engine: Engine, threads: int | None = None) -> Session:
        """The engine on a GPU; without one, the file it was built from."""
        if self.runs_here() is None:
            return CudaSession(import_rtx(), engine)
        return OrtSession(replace(engine, entry=trt_typed.ONNX), threads, optimize=False)


def build_engine(path: Path, capabilities: Sequence[str]) -> bytes:
    """ONNX file → serialized engine for these compute capabilities. Raises RuntimeRefusal, MissingExtra."""
    rtx = import_rtx()
    complaints = _Complaints(rtx)
    builder = rtx.Builder(complaints.logger)
    network = builder.create_network(0)
    parser = rtx.OnnxParser(network, complaints.logger)
    if not parser.parse_from_file(str(path)):
        raise RuntimeRefusal(trt_typed.complaint(parser, f"TensorRT-RTX {rtx.__version__}"))
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for place, name in enumerate(capabilities):
        config.set_compute_capability(getattr(rtx.ComputeCapability, name), place)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = complaints.said[0] if complaints.said else "it gives no reason"
        raise RuntimeRefusal(f"TensorRT-RTX {rtx.__version__} parses {path.name} and does not build it: {reason}")
    return bytes(plan)


class _Complaints:
    """A logger that keeps errors instead of printing them."""

    def __init__(self, rtx: Any) -> None:
        said: list[str] = []
        worst = (rtx.Logger.ERROR, rtx.Logger.INTERNAL_ERROR)

        class Logger(rtx.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                rtx.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity in worst:
                    said.append(" ".join(text.split()))

        self.said, self.logger = said, Logger()


def import_rtx() -> Any:
    """The tensorrt_rtx module. Raises MissingExtra."""
    try:
        import tensorrt_rtx
    except ModuleNotFoundError as error:
        raise missing_extra("trt-rtx", error) from error
    return tensorrt_rtx

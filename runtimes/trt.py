"""Target `trt`: TensorRT 10 and 11, as on Jetson boards and GPU servers.

An engine belongs to one GPU and one TensorRT. Where both are here it is built here; everywhere else the bundle is the
ONNX file that the device builds its engine from (`edgevit.devices.trtexec`), tried on a GPU-less TensorRT-RTX.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgevit.errors import MissingExtra, RuntimeRefusal
from edgevit.runtimes import trt_typed
from edgevit.runtimes.base import Session
from edgevit.runtimes.cuda_session import CudaSession, no_gpu
from edgevit.runtimes.ort import OrtSession
from edgevit.runtimes.trt_plan import check_header
from edgevit.runtimes.trt_rtx import build_engine, import_rtx
from edgevit.stages import Engine, Graph, Refusal

PLAN = "model.plan"
OLDEST = (10, 0)


@dataclass(frozen=True)
class Trt:
    """TensorRT. timing_cache: file that builds on this GPU share, so that a rebuild picks the same kernels."""

    timing_cache: str = ""

    name = "trt"
    extra = "trt"
    runner = ""
    policy = trt_typed.POLICY

    @property
    def checked_by(self) -> str:
        """The engine where it is built here, else the file it will be built from."""
        return trt_typed.CHECKED_BY if self.runs_here() else "the engine, on this GPU"

    @property
    def unverified(self) -> tuple[str, ...]:
        """What the device must still tell."""
        if self.runs_here() is None:
            return ()
        return ("that the device's own TensorRT builds it", "that attention is fused", trt_typed.NUMBERS, "latency")

    def version(self) -> str:
        """Version of TensorRT where it is here, else of the package that writes the file for it."""
        onnx = trt_typed.onnx_version()
        return str(import_trt().__version__) if find_spec("tensorrt") else f"built on the device (onnx {onnx})"

    def resolve(self, precision: str) -> str:
        """`int8` is int8 with float16 around it."""
        return trt_typed.resolve(precision)

    def runs_here(self, precision: str = "") -> str | None:
        """With the tensorrt package and a GPU."""
        if not find_spec("tensorrt"):
            return "no tensorrt package here; the device builds and runs the engine"
        return no_gpu()

    def refuses(self, graph: Graph) -> list[Refusal]:
        """What is known beforehand; the parser names the rest when it builds."""
        return trt_typed.refused(graph)

    def build(self, graph: Graph, folder: Path, precision: str) -> Engine:
        """Write `model.onnx`; `model.plan` too where this machine can."""
        trt_typed.write(graph, folder, precision)
        path = folder / trt_typed.ONNX
        options = {"accepted_by": accept(path, precision)}
        files: tuple[str, ...] = (trt_typed.ONNX,)
        if self.runs_here() is None:
            (folder / PLAN).write_bytes(build_plan(path, self.timing_cache))
            files = (PLAN, trt_typed.ONNX)
        return Engine(folder, self.name, self.version(), precision, files[0], files, graph.inputs, options)

    def open(self, engine: Engine, threads: int | None = None) -> Session:
        """The engine that was built here, on the GPU; else the file that the device builds from."""
        if engine.entry == PLAN:
            reason = self.runs_here()
            if reason is not None:
                raise RuntimeRefusal(f"{PLAN} runs where it was built: {reason}")
            vendor = import_trt()
            check_header(engine.folder / PLAN, "TensorRT", vendor.__version__)
            return CudaSession(vendor, engine)
        return OrtSession(replace(engine, entry=trt_typed.ONNX), threads, optimize=False)


def accept(path: Path, precision: str) -> str:
    """Parse and build the file with TensorRT-RTX; what did it, or that nothing could. Raises RuntimeRefusal."""
    try:
        version = import_rtx().__version__
    except MissingExtra:
        return "nothing: tensorrt_rtx is not installed (pip install 'edgevit[trt-rtx]')"
    capability = "SM89" if precision == "fp8" else "SM86"
    build_engine(path, (capability,))
    return f"TensorRT-RTX {version}, parsed and built for {capability}"


def build_plan(path: Path, timing_cache: str) -> bytes:
    """ONNX file → engine for this GPU, types as in the file. Raises RuntimeRefusal."""
    trt = import_trt()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # TensorRT 11 knows no other networks, and takes no flag for it
    typed = 0 if _major(trt) >= 11 else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise RuntimeRefusal(trt_typed.complaint(parser, f"TensorRT {trt.__version__}"))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layer names: whether attention is fused
    cache = Path(timing_cache) if timing_cache else None
    if cache:
        known = cache.read_bytes() if cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeRefusal(f"TensorRT {trt.__version__} parses {path.name} and does not build it; its log says why")
    if cache:
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _major(trt: Any) -> int:
    return int(trt.__version__.split(".")[0])


def import_trt() -> Any:
    """The tensorrt module. Raises RuntimeRefusal for one that is too old for a strongly typed network."""
    import tensorrt

    if _major(tensorrt) < OLDEST[0]:
        raise RuntimeRefusal(
            f"TensorRT {tensorrt.__version__} has no strongly typed networks; edgevit needs 10 or later (JetPack 6.1)"
        )
    return tensorrt

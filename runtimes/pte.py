"""Target `executorch`: a .pte file whose operators XNNPACK takes, wherever it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import EdgeVitError, RuntimeRefusal, missing_extra
from edgevit.export.attention_as_products import attention_as_products
from edgevit.export.dequantize_by_reader import dequantize_by_reader
from edgevit.export.drop_empty_parts import drop_empty_parts
from edgevit.export.fold_constants import fold_constants
from edgevit.export.lengths_as_sums import lengths_as_sums
from edgevit.export.moves_as_reshapes import moves_as_reshapes
from edgevit.export.pool_as_mean import pool_as_mean
from edgevit.export.rewrite import sweep
from edgevit.export.softmax_by_row import softmax_by_row
from edgevit.export.to_half import to_half
from edgevit.export.trace import export_program
from edgevit.quant.policies import POLICIES
from edgevit.quiet import quiet, quiet_descriptor
from edgevit.runtimes.base import Policy, Session
from edgevit.runtimes.pte_partition import Reasons, left, operator_name, partition
from edgevit.runtimes.pte_passes import needed_passes
from edgevit.stages import Engine, Graph, Refusal

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

NORMS = frozenset({"layer_norm", "native_layer_norm"})
"""ExecuTorch's kernel sums in the type of its input, squares too: past 65,504 in float16."""
# What XNNPACK has no operator for or computes wrong, in operators it has. They keep the function of any program,
# quantized ones too.
FORMS: tuple[Callable[[GraphModule], int], ...] = (
    drop_empty_parts,
    fold_constants,
    attention_as_products,
    lengths_as_sums,
    pool_as_mean,
    softmax_by_row,  # behind attention, whose own it changes too, and before reshapes in a row are one
    moves_as_reshapes,
    dequantize_by_reader,  # last: what moves would read one again
)


@dataclass(frozen=True)
class ExecuTorch:
    """ExecuTorch with the XNNPACK delegate. What it does not take runs on ExecuTorch's own kernels, and is listed."""

    name = "executorch"
    extra = "executorch"
    runner = "executorch"
    checked_by = "the .pte file, in ExecuTorch's own runtime with XNNPACK on this CPU"
    unverified = (
        "the kernels that XNNPACK picks on the phone's CPU (NEON, dot products), and their speed",
        "that the app links the kernels of the operators outside the delegate",
    )
    policy = Policy(
        precisions=("fp32", "fp16", "int8"),
        int8="int8",
        scheme=POLICIES["executorch"],
        rewrites=(
            "fold_batch_norm",
            "fold_layer_scale",
            "split_qkv",
            "fold_attention_scale",
            "drop_unread_tokens",
            "fold_norm_affine",
        ),
        lowering="gather",
        # fp32: same operators, other summation order. fp16 rounds at every operator, and a rounded similarity may pick
        # another, nearly equal, token: judged by agreement like 8 bits.
        tolerance={"fp32": 1e-4, "fp16": None, "int8": None},
    )

    def version(self) -> str:
        """Version of the executorch package."""
        try:
            from executorch.version import __version__
        except ModuleNotFoundError as error:
            raise missing_extra(self.extra, error) from error
        return str(__version__)

    def runs_here(self, precision: str = "") -> str | None:
        """It does."""
        return None

    def resolve(self, precision: str) -> str:
        """Names are exact already."""
        return precision

    def refuses(self, graph: Graph) -> list[Refusal]:
        """Nothing beforehand: what XNNPACK leaves, ExecuTorch's kernels take; building names what has no kernel."""
        return []

    def build(self, graph: Graph, folder: Path, precision: str) -> Engine:
        """Lower and write `model.pte`, with the list of what XNNPACK did not take."""
        version = self.version()
        with quiet(), quiet_descriptor(), Reasons() as reasons:
            formed = _formed(to_half(graph, NORMS) if precision == "fp16" else graph)
            with _refused(f"cannot lower the {precision} program"):
                lowered = _lowered(formed)
            options = {"partition": partition(lowered.exported_program(), reasons.found)}
            _check_kernels(lowered.exported_program())
            with _refused(f"cannot write the {precision} program"):
                written = lowered.to_executorch()
        (folder / "model.pte").write_bytes(written.buffer)
        files = ("model.pte",)
        return Engine(folder, self.name, version, precision, files[0], files, graph.inputs, options)

    def open(self, engine: Engine, threads: int | None = None) -> Session:
        """Load the file. threads: of the whole process, as its runtime has one pool."""
        return PteSession(engine, threads)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Raise what a foreign compiler or runtime raises, assertions too, as a RuntimeRefusal of one line."""
    try:
        yield
    except EdgeVitError:
        raise
    except Exception as error:
        why = (str(error).strip().splitlines() or ["no reason given"])[0][:240]
        text = f"executorch {what}: {type(error).__name__}: {why}"
        raise RuntimeRefusal(f"{text}; try another precision, or take another target") from error


def _check_kernels(program: ExportedProgram) -> None:
    """Raise RuntimeRefusal when an operator outside the delegate has no kernel in this runtime."""
    there = {name.split("::")[-1].split(".")[0] for name in _extension()._get_operator_names()}
    for node in left(program):
        if operator_name(node) not in there:
            what = f"{node.name}: ExecuTorch has no kernel of {operator_name(node)}, and XNNPACK does not take it"
            raise RuntimeRefusal(f"{what}; write the model without it, or take another target")


def _extension() -> Any:
    """ExecuTorch's runtime. The module around it would import the whole compiler."""
    import torch  # noqa: F401 (its libraries must be loaded before the extension)

    try:
        with quiet_descriptor():  # it reports what it reads of the CPU
            from executorch.extension.pybindings import _C
    except ModuleNotFoundError as error:
        raise missing_extra("executorch", error) from error
    return _C


def _formed(graph: Graph) -> ExportedProgram:
    """The program in the operators of `FORMS`."""
    module = graph.program.module()
    for form in FORMS:
        form(module)
    sweep(module)
    return export_program(module, graph.inputs)


def _lowered(program: ExportedProgram) -> Any:
    """ExecuTorch's program, parts of which are XNNPACK's."""
    with quiet("torch.utils._pytree"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        config = EdgeCompileConfig(_check_ir_validity=False)  # the check of the engine's outputs sees more
        with needed_passes():
            return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], compile_config=config)


class PteSession:
    """A loaded method."""

    def __init__(self, engine: Engine, threads: int | None) -> None:
        runtime, path = _extension(), engine.folder / engine.entry
        self.shape, self.name = engine.inputs.shape, path.name
        try:
            with quiet_descriptor():
                if threads:
                    runtime._unsafe_reset_threadpool(threads)
                self.method = runtime._load_program(str(path)).load_method("forward")
        except RuntimeError as error:
            text = f"executorch cannot load {path.name}: {error}"
            raise RuntimeRefusal(f"{text}; export it again, or in another precision or for another target") from error

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """One inference. Raises RuntimeRefusal for images of another shape, and when a kernel fails."""
        import torch

        if images.shape != self.shape:
            have, want = list(images.shape), list(self.shape)
            raise RuntimeRefusal(f"executorch: {self.name} takes images {want}, got {have}; export it for that input")
        with _refused(f"cannot run {self.name}"):
            out: np.ndarray[Any, Any] = self.method([torch.from_numpy(images)])[0].numpy()
        return out

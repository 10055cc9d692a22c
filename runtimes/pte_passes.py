"""ExecuTorch's lowering without the passes that would change nothing.

XNNPACK runs every pass over each of its parts, and lowering decomposes a program three times. Each traces again, also
where it changes nothing, and most look for what is not there. The file is the same, byte for byte, in half the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgevit.runtimes.pte_partition import operator_names

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph

BATCH_NORM = frozenset({"native_batch_norm", "_native_batch_norm_legit_no_training"})
NEVER = frozenset({"ConvertToSDPAPass", "ConvertToUpsampleBilinear2d"})
"""They trace example models, to find torch's own decompositions of them; nothing here is decomposed that way."""
NEEDS: Mapping[str, frozenset[str]] = {
    "DimOrderOpsRevertPass": frozenset({"_to_dim_order_copy", "_clone_dim_order", "_empty_dim_order"}),
    "ConvertToLinearPass": frozenset({"mm", "addmm", "bmm"}),
    "FuseBatchNormPass": BATCH_NORM,
    "DecomposeBatchNorm": BATCH_NORM,
    "FuseActivationPass": frozenset({"relu", "hardtanh"}),
    "DecomposeConcatenate": frozenset({"cat"}),
    "RemoveGetItemPass": frozenset({"max_pool2d_with_indices", "max"}),
    "InsertPadQDQPass": frozenset({"constant_pad_nd"}),
    "Conv1dUnsqueezePass": frozenset({"convolution"}),
    "PReLUReshapePass": frozenset({"_prelu_kernel"}),
    "RemoveRedundantCopyPass": frozenset({"_to_copy"}),
}
"""Pass → the operators that it looks for. A pass that is not named here always runs."""


def decomposes(table: Mapping[Any, Any] | None, graph: Graph) -> bool:
    """Whether a decomposition may change a program: one of its operators is there, is made of others, or writes.

    Into nothing (`{}`) it still takes away writes into inputs, and what torch itself makes of others, as `reshape`.
    """
    calls = [node.target for node in graph.nodes if node.op == "call_function"]
    return table is None or any(op in table or _is_composite(op) or _writes(op) for op in calls)


def _is_composite(operator: Any) -> bool:
    from torch import _C, _ops

    is_torch = isinstance(operator, _ops.OpOverload)
    return is_torch and bool(_C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd"))


def _writes(operator: Any) -> bool:
    schema = getattr(operator, "_schema", None)
    return schema is not None and schema.is_mutable


def changes(name: str, graph: Graph) -> bool:
    """Whether a pass may change a part. ConstPropPass folds operators of constants alone."""
    if name == "PropagateCustomMetaPass":
        return any("custom" in node.meta for node in graph.nodes)
    if name == "ConstPropPass":
        calls = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
        return any(node.op != "call_function" or not node.all_input_nodes for node in calls)
    return name not in NEVER and (name not in NEEDS or not NEEDS[name].isdisjoint(operator_names(graph)))


@contextmanager
def needed_passes() -> Iterator[None]:
    """While it is open, no pass of XNNPACK and no decomposition runs that would change nothing; each asked in turn."""
    from executorch.backends.xnnpack import xnnpack_preprocess
    from executorch.backends.xnnpack._passes import XNNPACKPassManager
    from torch.export import ExportedProgram

    decompose = ExportedProgram.run_decompositions

    class Needed(XNNPACKPassManager):  # type: ignore[misc]
        def transform(self) -> ExportedProgram:
            program: ExportedProgram = self.exported_program
            for one in self.passes:
                if changes(one.__name__, program.graph):
                    program = XNNPACKPassManager(program, [one]).transform()
            return program

    def run_decompositions(program: ExportedProgram, decomp_table: Any = None, **more: Any) -> ExportedProgram:
        return decompose(program, decomp_table, **more) if decomposes(decomp_table, program.graph) else program

    xnnpack_preprocess.XNNPACKPassManager = Needed
    ExportedProgram.run_decompositions = run_decompositions  # type: ignore[method-assign]
    try:
        yield
    finally:
        xnnpack_preprocess.XNNPACKPassManager = XNNPACKPassManager
        ExportedProgram.run_decompositions = decompose  # type: ignore[method-assign]

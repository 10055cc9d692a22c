"""A program in float16, for engines that take the types as written; images and outputs stay float32.

What stays float32 inside: what decides about tokens; norms but LayerNorm, whose kernels sum in float32 (`stash_type` in
ONNX); sums, means and powers; quotients of two activations and what they are computed from, as merged tokens and linear
attention are (sums over tokens overflow); operators with a constant that float16 does not hold. Softmax subtracts its
maximum and stays float16, so that engines still see one attention.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from edgevit.export.fold_batch_norm import fold_batch_norm
from edgevit.export.rewrite import Node, attribute, call, constant, sweep
from edgevit.export.trace import export_program
from edgevit.quant.decisions import deciding, is_float
from edgevit.quant.flow import ATTENTION, LAYOUT, NORMS, Flow, operator
from edgevit.quant.quotients import FOLLOWS, quotients
from edgevit.stages import Graph

if TYPE_CHECKING:
    from torch.fx import GraphModule

HALF, FLOAT = torch.float16, torch.float32
LARGEST, SMALLEST = torch.finfo(HALF).max, torch.finfo(HALF).tiny
STATISTICS = (NORMS - {"layer_norm", "native_layer_norm"}) | {
    "_native_batch_norm_legit_no_training", "sum", "mean", "var", "std", "var_mean", "std_mean", "cumsum", "prod",
    "linalg_vector_norm", "norm", "pow", "logsumexp", "adaptive_avg_pool2d",
}  # fmt: skip
INTERNAL = {"layer_norm", "native_layer_norm", ATTENTION, "dropout"}
"""Their scalars are no float16 tensors."""
G = TypeVar("G", bound=Graph)


def to_half(graph: G, single: frozenset[str] = frozenset()) -> G:
    """The same program with float16 weights and activations; a quantized one has float16 around its integers.

    single: operators that stay float32 too, for what an engine's own kernels do.
    """
    module = graph.program.module()
    folded = ("fold_batch_norm",) if fold_batch_norm(module) else ()
    sweep(module)
    if any(_in_place(node) for node in module.graph.nodes):  # a cast would be written into, and not what it copies
        module = export_program(module, graph.inputs).run_decompositions({}).module()
    for node in [n for n in module.graph.nodes if operator(n) == "_assert_tensor_metadata"]:
        module.graph.erase_node(node)  # it would hold the old types
    _Halves(module, single).write()
    sweep(module)
    program = export_program(module, graph.inputs)
    return replace(graph, program=program, passes=(*graph.passes, *folded, "to_half"))


def _in_place(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


class _Halves:
    """One walk in order: each node's type, and casts where it differs from what is read."""

    def __init__(self, module: GraphModule, single: frozenset[str]) -> None:
        self.module, self.flow = module, Flow(module)
        self.single = _single(module, self.flow, STATISTICS | single)
        self.wide = self._wide()  # quantizers and dequantizers
        self.type: dict[Node, torch.dtype] = {}
        self.casts: dict[tuple[Node, torch.dtype], Node] = {}

    def write(self) -> None:
        """Change the program in place."""
        for node in list(self.module.graph.nodes):
            if node in self.flow.inputs:
                self.type[node] = self._choose(node)
                self._read(node, self.type[node])
            elif operator(node).startswith("dequantize"):  # a weight
                self.type[node] = FLOAT if node in self.wide else HALF
            if operator(node).startswith(("quantize", "dequantize")) and self.type[node] is HALF:
                _scale_in_half(self.module, node)
        self._read(self.module.graph.output_node(), FLOAT)

    def _choose(self, node: Node) -> torch.dtype:
        """The type of the floats that a node reads and gives."""
        name, floats = operator(node), [n for n in node.all_input_nodes if is_float(n)]
        if name.startswith("dequantize"):
            return self.type[self.flow.inputs[node][0]]
        if name.startswith("quantize"):
            return FLOAT if node in self.wide else HALF
        types = [self.type.get(n, FLOAT) for n in (floats[:1] if name.endswith("_as") else floats)]
        named = FLOAT in (*node.args, *node.kwargs.values())
        if node in self.single or not types or named or not self._fits(node):
            return FLOAT
        if name in LAYOUT:
            return HALF if HALF in types else FLOAT
        # arithmetic on float32 alone: a statistic on its way
        return FLOAT if name in FOLLOWS and HALF not in types else HALF

    def _wide(self) -> set[Node]:
        """Those whose scale float16 does not hold, and the other of the same layer: TensorRT wants one type of both."""
        wide = {n for n in self.module.graph.nodes if "quantize" in operator(n) and not self._fits(n)}
        for node in self.flow.nodes:
            if operator(node).startswith("dequantize"):
                layers = [n for n in node.users if n in self.flow.layers]
                group = {node, *self.flow.inputs[node], *(n.args[1] for n in layers)}
                if layers and not wide.isdisjoint(group):
                    wide |= group
        return wide

    def _read(self, node: Node, wanted: torch.dtype) -> None:
        def cast(value: Node) -> Node:
            if isinstance(value.meta["val"], (list, tuple)) or not is_float(value):
                return value
            if self.type.get(value, FLOAT) is wanted:
                return value
            if (value, wanted) not in self.casts:
                self.casts[value, wanted] = self._cast(value, wanted)
            return self.casts[value, wanted]

        node.args, node.kwargs = torch.fx.map_arg((node.args, node.kwargs), cast)

    def _cast(self, value: Node, wanted: torch.dtype) -> Node:
        """A constant in its new type, or a cast right behind the value."""
        stored = attribute(self.module, value) if value.op == "get_attr" else None
        if stored is not None:
            return constant(self.module, value.next, "half", stored.to(wanted))
        return call(self.module, value.next, torch.ops.aten._to_copy.default, value, dtype=wanted)

    def _fits(self, node: Node) -> bool:
        """Whether float16 holds a node's constants: none too large, no factor or scale too small."""
        name = operator(node)
        tensors = [t for n in node.all_input_nodes if (t := attribute(self.module, n)) is not None and t.dtype is FLOAT]
        scalars = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, float)]
        if "quantize" in name:
            scales = torch.cat([torch.tensor(scalars), *(t.flatten() for t in tensors)])
            return bool(((scales >= SMALLEST) & (scales <= LARGEST)).all())
        if any(((t.abs() > LARGEST) & t.isfinite()).any() for t in tensors):
            return False
        return name in INTERNAL or all(v == 0 or SMALLEST <= abs(v) <= LARGEST or math.isinf(v) for v in scalars)


def single(module: GraphModule) -> set[str]:
    """Names of the operators that stay float32 for what they are, for a compiler that casts by itself."""
    return {node.name for node in _single(module, Flow(module), STATISTICS)}


def _single(module: GraphModule, flow: Flow, named: set[str]) -> set[Node]:
    """Nodes that stay float32 for what they are: decisions, statistics, quotients."""
    names = deciding(module)
    found = {n for n in flow.nodes if n.name in names or operator(n) in named}
    return found.union(*quotients(flow))


def _scale_in_half(module: GraphModule, node: Node) -> None:
    """Round a quantizer's scale to what the file will hold, and let a dequantizer give float16."""
    scale = node.args[1]
    if isinstance(scale, float):
        scale = float(torch.tensor(scale).half())
    elif scale.meta["val"].dtype is FLOAT:
        value = attribute(module, scale)
        assert value is not None
        scale = constant(module, node, "scale_half", value.half())
    node.args = (node.args[0], scale, *(HALF if a is FLOAT else a for a in node.args[2:]))
    if any(a.name == "out_dtype" for a in node.target._schema.arguments):
        node.kwargs = {**node.kwargs, "out_dtype": HALF}

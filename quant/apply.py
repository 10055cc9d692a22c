"""Graph + images → QuantizedGraph: explicit Q/DQ around Linear and Conv, everything else float and listed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.ao.quantization.fx._decomposed

from edgevit.errors import QuantError
from edgevit.export.rewrite import Node, attribute, call, constant, rewrite, sweep
from edgevit.export.trace import export_program
from edgevit.quant.calibrate import Observed, observe
from edgevit.quant.equalize import Choice, choose
from edgevit.quant.ranges import quantize_weight, search
from edgevit.quant.scheme import KEPT_FLOAT, MOVES, OTHER_OPERATOR, Affine, QuantScheme
from edgevit.stages import Graph, QuantizedGraph, Refusal

if TYPE_CHECKING:
    import numpy as np
    from torch.fx import GraphModule

LINEAR = torch.ops.aten.linear.default
CONVS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)
WRAPPERS = ("model.", "stem.model.", "head.model.")  # what tracing and reduction put around the user's module
QDQ = torch.ops.quantized_decomposed


def quantize(
    graph: Graph,
    scheme: QuantScheme,
    rewrites: Sequence[str],
    batches: Iterable[np.ndarray[Any, Any]],
    count: int,
    progress: Callable[[int], None] = lambda done: None,
) -> QuantizedGraph:
    """Quantize a program after training.

    rewrites: exact float passes to run first (edgevit.export.rewrite.PASSES).
    batches: calibration images `[B, 3, H, W]`, preprocessed as in evaluation; count: how many batches there are.
    Raises QuantError when nothing can be quantized or calibration fails.
    """
    module = graph.program.module()
    passes = (*graph.passes, *rewrite(module, graph.inputs, rewrites))
    groups, refused = find(module)
    if not groups:
        raise QuantError("the program has no Linear or Conv with constant weights; there is nothing to quantize")
    seen = observe(module, groups, batches, count, progress)
    log = []
    for source, layers in groups.items():
        if all(layer.target is LINEAR for layer in layers):
            log.append(_quantize_linears(module, source, layers, seen[source], scheme))
        else:
            log.append(_quantize_shared(module, source, layers, seen[source], scheme))
    sweep(module)
    kept = (*refused, *_kept(module))
    program = export_program(module, graph.inputs)
    return QuantizedGraph(program, graph.inputs, passes, kept, tuple(log))


def find(module: GraphModule) -> tuple[dict[Node, list[Node]], tuple[Refusal, ...]]:
    """Quantizable layers grouped by the tensor they read, and the ones that are not, with the reason."""
    groups: dict[Node, list[Node]] = {}
    refused = []
    variable: set[Node] = set()  # what depends on the images
    for node in module.graph.nodes:
        if node.op == "placeholder" or not variable.isdisjoint(node.all_input_nodes):
            variable.add(node)
        if node.target is not LINEAR and node.target not in CONVS:
            continue
        if attribute(module, node.args[1]) is None:
            refused.append(Refusal(layer_name(node), "its weight is computed, not a constant"))
        elif len(node.args) > 2 and node.args[2] is not None and attribute(module, node.args[2]) is None:
            refused.append(Refusal(layer_name(node), "its bias is computed, not a constant"))
        elif node.args[0] not in variable:
            refused.append(Refusal(layer_name(node), "it reads a constant, so engines compute it once, when they load"))
        else:
            groups.setdefault(node.args[0], []).append(node)
    return groups, tuple(refused)


def layer_name(node: Node) -> str:
    """The module path a node came from, else its own name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    for wrapper in WRAPPERS:
        path = path.removeprefix(wrapper)
    while ".block." in path:  # reduction wraps an adapter's block, which wraps the library's
        path = path.replace(".block.", ".")
    return path or str(node.name)


def _quantize_linears(
    module: GraphModule, source: Node, layers: list[Node], seen: Observed, scheme: QuantScheme
) -> dict[str, Any]:
    """All Linears on one input: one equalization, one Q/DQ, corrected biases."""
    weights = [_weight(module, layer) for layer in layers]
    choice = choose(seen, weights, scheme)
    value = source if choice.scale is None else _rescale(module, source, layers, choice.scale)
    ready = _qdq(module, layers[0], value, choice.quantizer)
    for layer, weight, shift in zip(layers, weights, choice.shift, strict=True):
        scaled = weight if choice.scale is None else weight * choice.scale
        bias = attribute(module, layer.args[2]) if len(layer.args) > 2 else None
        if scheme.correct_bias:
            bias = -shift if bias is None else bias - shift
        node = None if bias is None else constant(module, layer, "corrected_bias", bias)
        layer.args = (ready, _weight_dq(module, layer, scaled), node)
    return _entry(layers, choice)


def _rescale(module: GraphModule, source: Node, layers: list[Node], scale: torch.Tensor) -> Node:
    """Divide a Linear's input by `scale`: folded into a LayerNorm that has no other reader, else one multiplication."""
    if source.target is torch.ops.aten.layer_norm.default and set(source.users) == set(layers):
        gain = attribute(module, source.args[2]) if len(source.args) > 2 else None
        offset = attribute(module, source.args[3]) if len(source.args) > 3 else None
        new_gain = constant(module, source, "gain", (1 / scale) if gain is None else gain / scale)
        new_offset = None if offset is None else constant(module, source, "offset", offset / scale)
        source.args = (*source.args[:2], new_gain, new_offset, *source.args[4:])
        return source
    factor = constant(module, layers[0], "smooth", 1 / scale)
    return call(module, layers[0], torch.ops.aten.mul.Tensor, source, factor)


def _quantize_shared(
    module: GraphModule, source: Node, layers: list[Node], seen: Observed, scheme: QuantScheme
) -> dict[str, Any]:
    """Convolutions (and what shares their input): a searched range, no equalization."""
    quantizer = search(seen.rows, seen.low, seen.high, scheme)
    ready = _qdq(module, layers[0], source, quantizer)
    for layer in layers:
        layer.args = (ready, _weight_dq(module, layer, _weight(module, layer)), *layer.args[2:])
    return {"layers": [layer_name(n) for n in layers], "alpha": None, "scale": quantizer.scale}


def _weight(module: GraphModule, layer: Node) -> torch.Tensor:
    weight = attribute(module, layer.args[1])
    assert weight is not None  # find() refused the others
    return weight


def _qdq(module: GraphModule, before: Node, value: Node, q: Affine) -> Node:
    """Value → quantize_per_tensor → dequantize_per_tensor."""
    dtype = torch.uint8 if q.low == 0 else torch.int8
    arguments = (q.scale, q.zero_point, q.low, q.high, dtype)
    quantized = call(module, before, QDQ.quantize_per_tensor.default, value, *arguments)
    return call(module, before, QDQ.dequantize_per_tensor.default, quantized, *arguments)


def _weight_dq(module: GraphModule, layer: Node, weight: torch.Tensor) -> Node:
    """An int8 constant → dequantize_per_channel along the output axis."""
    values, scale = quantize_weight(weight)
    nodes = (
        constant(module, layer, "weight_int8", values),
        constant(module, layer, "weight_scale", scale),
        constant(module, layer, "weight_zero", torch.zeros(len(scale), dtype=torch.int64)),
    )
    return call(module, layer, QDQ.dequantize_per_channel.default, *nodes, 0, -127, 127, torch.int8)


def _entry(layers: list[Node], choice: Choice) -> dict[str, Any]:
    return {
        "layers": [layer_name(n) for n in layers],
        "alpha": choice.alpha,
        "scale": choice.quantizer.scale,
        "error": choice.error,
    }


def _kept(module: GraphModule) -> list[Refusal]:
    """Every float operator that computes, with its reason; Linears and convolutions are find()'s matter."""
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target is LINEAR or node.target in CONVS:
            continue
        operator = _operator(node)
        value = node.meta.get("val")
        is_float = value is None or not hasattr(value, "dtype") or value.dtype.is_floating_point
        if is_float and operator not in MOVES and "quantized_decomposed" not in str(node.target):
            reason = KEPT_FLOAT.get(operator, OTHER_OPERATOR)
            found.append(Refusal(f"{layer_name(node)} ({operator})", reason))
    return found


def _operator(node: Node) -> str:
    """The bare name of an operator: `aten.add_.Tensor` → `add`."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__).rstrip("_")
    return str(getattr(node.target, "__name__", node.target))

"""The batch axis of one image goes: `[1, N, C]` becomes `[N, C]`, so that a runtime sees matrices and plain vectors.

On three dimensions ONNX Runtime computes a Linear as reshape, Gemm, reshape, and every index vector of a reduction as
squeeze, gather, unsqueeze: a few microseconds each, a few hundred times.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgevit.export.rewrite import Node, call

if TYPE_CHECKING:
    from torch.fx import GraphModule

ELEMENTWISE = (
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "pow.Tensor_Scalar", "sqrt.default", "log.default",
    "exp.default", "neg.default", "eq.Tensor", "gelu.default", "relu.default", "silu.default", "clamp.default",
    "clamp_min.default", "dropout.default", "to.dtype", "clone.default", "contiguous.default",
)  # fmt: skip
# Where each operator says which axes it means; all it needs to know is that they are not the first one.
AXES = {
    "cat.default": 1, "slice.Tensor": 1, "select.int": 1, "index_select.default": 1, "split_with_sizes.default": 2,
    "softmax.int": 1, "amax.default": 1, "argmax.default": 1, "mean.dim": 1, "sum.dim_IntList": 1, "topk.default": 2,
    "squeeze.dim": 1,
}  # fmt: skip
LEAST_RANK = {"linear.default": 3, "layer_norm.default": 3, "matmul.default": 3}  # of two dimensions, one is the row


def drop_batch_axis(module: GraphModule) -> int:
    """Operators whose tensors all begin with an axis of one work without it, starting at the Linears and norms.

    op([1, ...]) -> [1, ...]   becomes   reshape(op([...])) -> [1, ...], and the next operator reads in front of the
    reshape. An operator that is not in the tables reads the reshape; one that nothing reads is swept.
    """
    import torch

    bare: dict[Node, Node] = {}  # a node -> the same values without the first axis
    matched = 0
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default and node.args[0] in bare:
            module.graph.erase_node(node)  # a check of the trace, which it passed
        if node.op != "call_function" or node.meta.get("val") is None:
            continue
        new = _without(module, node, bare)
        if new is None:
            continue
        matched += 1
        shape = getattr(node.meta["val"], "shape", None)
        if shape is None:  # several results; the readers pick one
            bare[node] = new
            continue
        back = new if new.meta["val"].shape == shape else _shaped(module, node, new, shape)
        node.replace_all_uses_with(back)
        if back is not new:  # else it had no first axis of one
            bare[back] = new
    return matched


def _without(module: GraphModule, node: Node, bare: dict[Node, Node]) -> Node | None:
    """What computes `node` without the first axis, or None for a node that stays."""
    import torch

    aten, shape, first = torch.ops.aten, tuple(getattr(node.meta["val"], "shape", ())), node.all_input_nodes[:1]
    if node.target is operator.getitem:
        return call(module, node, operator.getitem, bare[first[0]], node.args[1]) if first[0] in bare else None
    if not first or not hasattr(first[0].meta.get("val"), "shape"):
        return None
    rank = first[0].meta["val"].ndim
    if node.target is aten.reshape.default:
        return _reshaped(module, node, bare)
    if node.target is aten.squeeze.dim and node.args[1] in (0, -rank) and first[0] in bare:
        return bare[first[0]]
    if node.target in (aten.unsqueeze.default, aten.expand.default) and first[0].meta["val"].shape == shape[1:]:
        return first[0] if shape[0] == 1 else None
    if node.target is aten.unsqueeze.default:
        axis = node.args[1] % (rank + 1)
        return call(module, node, node.target, bare[first[0]], axis - 1) if first[0] in bare and axis else None
    if node.target in (aten.permute.default, aten.transpose.int) and first[0] in bare:
        turns = node.target is aten.permute.default
        axes = [axis % rank - 1 for axis in (node.args[1] if turns else node.args[1:])]
        fits = axes[0] == -1 if turns else min(axes) >= 0
        return call(module, node, node.target, bare[first[0]], *([axes[1:]] if turns else axes)) if fits else None
    return _operator(module, node, bare)


def _operator(module: GraphModule, node: Node, bare: dict[Node, Node]) -> Node | None:
    """Operators of the tables: inputs of the full rank lose the axis, smaller ones broadcast as they did."""
    import torch
    from torch.fx.node import map_arg

    name = str(node.target).removeprefix("aten.")
    shapes = {part: tuple(getattr(part.meta.get("val"), "shape", ())) for part in node.all_input_nodes}
    rank = max(map(len, shapes.values()))
    full = [part for part in shapes if len(shapes[part]) == rank]
    if not (name in ELEMENTWISE or name in AXES or name in LEAST_RANK) or rank < LEAST_RANK.get(name, 2):
        return None
    starts = rank == 3 and node.target in (torch.ops.aten.linear.default, torch.ops.aten.layer_norm.default)
    if any(shapes[part][0] != 1 for part in full) or not (starts or any(part in bare for part in full)):
        return None
    whole = name == "layer_norm.default" and len(node.args[1]) == rank
    if whole or (name == "matmul.default" and min(map(len, shapes.values())) < 2):
        return None
    args = list(node.args)
    if name in AXES:
        place = AXES[name]
        axes = _axes(args[place], rank) if len(args) > place else None
        if axes is None and not (name == "topk.default" and len(args) == place):  # topk means the last axis
            return None
        args[place : place + 1] = [] if axes is None else [axes]
    new = map_arg(tuple(args), lambda part: _bare(module, part, bare) if part in full else part)
    if name == "index_select.default" and rank <= 3 and new[1] == 0:  # index_select would reshape the indices first
        rows = (torch.ops.aten.embedding.default, new[0], new[2])
        return call(module, node, *(rows if rank == 3 else (torch.ops.aten.gather.default, *new)))
    return call(module, node, node.target, *new, **node.kwargs)


def _axes(given: Any, rank: int) -> Any:
    """The same axes counted without the first; None where it is one of them."""
    if not isinstance(given, (list, tuple)):
        return None if given % rank == 0 else given - (given > 0)
    axes = [_axes(axis, rank) for axis in given]
    return None if None in axes or not axes else axes


def _reshaped(module: GraphModule, node: Node, bare: dict[Node, Node]) -> Node | None:
    """A reshape goes straight to the shape without the axis."""
    if node.args[0] not in bare:
        return None
    shape = node.meta["val"].shape
    return _shaped(module, node, bare[node.args[0]], shape[1:] if shape[0] == 1 and len(shape) > 1 else shape)


def _bare(module: GraphModule, node: Node, bare: dict[Node, Node]) -> Node:
    """The values of `node` without the first axis: known, or by one reshape behind it."""
    bare[node] = bare.get(node) or _shaped(module, node.next, node, node.meta["val"].shape[1:])
    return bare[node]


def _shaped(module: GraphModule, before: Node, node: Node, shape: Sequence[int]) -> Node:
    """The same values in another shape, by one reshape of what lies in front of any others, or by none."""
    import torch

    while node.target is torch.ops.aten.reshape.default:
        node = node.args[0]
    if tuple(node.meta["val"].shape) == tuple(shape):
        return node
    return call(module, before, torch.ops.aten.reshape.default, node, list(shape))

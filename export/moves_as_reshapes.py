"""Operators that only rename or cut axes become `reshape` and `slice`, which every delegate knows."""

from __future__ import annotations

import operator
from itertools import accumulate
from typing import TYPE_CHECKING

from edgevit.export.rewrite import Node, call

if TYPE_CHECKING:
    from torch.fx import GraphModule

BROADCASTS = ("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor")
SAME = ("alias.default", "dropout.default", "to.dtype")
"""In evaluation, and where the type is the one it has. Readers of a dequantizer are found through none of them."""
RENAMES = ("unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims", "flatten.using_ints", "view.default")


def moves_as_reshapes(module: GraphModule) -> int:
    """unsqueeze, squeeze, flatten -> reshape; select, unbind -> slice, reshape; split, chunk -> slice.

    What gives its input goes, and an expand where it changes no shape or its readers broadcast. Of reshapes in a row
    the last is left, and none where nothing changes.
    """
    matched = 0
    for node in list(module.graph.nodes):
        new = _simpler(module, node) if node.op == "call_function" else None
        if new is not None:
            node.replace_all_uses_with(new)
            matched += 1
    return matched


def _simpler(module: GraphModule, node: Node) -> Node | None:
    import torch

    aten, shape = torch.ops.aten, list(getattr(node.meta.get("val"), "shape", ()))
    if str(node.target).removeprefix("aten.") in RENAMES:
        return call(module, node, aten.reshape.default, node.args[0], shape)
    if node.target is aten.select.int:
        x, axis, index = node.args
        return call(module, node, aten.reshape.default, _cut(module, node, x, axis, index, 1), shape)
    if node.target in (aten.expand.default, aten.expand_as.default):
        plain = list(node.args[0].meta["val"].shape) == shape or all(_broadcasts(u, node, shape) for u in node.users)
        return node.args[0] if plain else None
    if str(node.target).removeprefix("aten.") in SAME and node.meta["val"].dtype is node.args[0].meta["val"].dtype:
        return node.args[0]
    if node.target is aten.reshape.default:
        return _reshaped(node, shape)
    return _part(module, node, shape) if node.target is operator.getitem else None


def _part(module: GraphModule, node: Node, shape: list[int]) -> Node | None:
    """One of several pieces along an axis."""
    import torch

    aten, (whole, index) = torch.ops.aten, node.args
    if whole.target is aten.unbind.int:
        axis = whole.args[1] if len(whole.args) > 1 else 0
        return call(module, node, aten.reshape.default, _cut(module, node, whole.args[0], axis, index, 1), shape)
    if whole.target in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        axis = whole.args[2] if len(whole.args) > 2 else 0
        sizes = [part.shape[axis] for part in whole.meta["val"]]
        start = [0, *accumulate(sizes)][index]
        return _cut(module, node, whole.args[0], axis, start, sizes[index])
    return None


def _cut(module: GraphModule, before: Node, x: Node, axis: int, start: int, length: int) -> Node:
    """`length` places of an axis, which stays."""
    import torch

    start %= x.meta["val"].shape[axis]
    return call(module, before, torch.ops.aten.slice.Tensor, x, axis, start, start + length)


def _reshaped(node: Node, shape: list[int]) -> Node | None:
    """Its input where that has the shape already; else the node stays, on what lies in front of other reshapes."""
    while node.args[0].target is node.target:
        node.args = (node.args[0].args[0], shape)
    return node.args[0] if list(node.args[0].meta["val"].shape) == shape else None


def _broadcasts(user: Node, node: Node, shape: list[int]) -> bool:
    """Whether a reader is arithmetic with another tensor that has the whole shape."""
    others = [part for part in user.args if part is not node and hasattr(part, "meta")]
    whole = any(list(part.meta["val"].shape) == shape for part in others)
    return whole and str(user.target).removeprefix("aten.") in BROADCASTS

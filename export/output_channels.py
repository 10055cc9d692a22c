"""Which Linear or Conv made the channels of a tensor, and a gain and offset per channel moved into it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from edgevit.export.rewrite import Node, attribute, constant

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule


def channel_layer(module: GraphModule, value: Node, axis: int) -> Node | None:
    """The Linear or Conv whose output channels lie along `axis` of `value`; None where there is none.

    Only operators that move values and do nothing else may lie between, nothing else may read any of them, and weight
    and bias must be constants.
    """
    import torch

    aten = torch.ops.aten
    convs = (aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding)
    node, place = value, axis
    while len(node.users) == 1:
        shape = node.meta["val"].shape
        if node.target is aten.linear.default or node.target in convs:
            channels = len(shape) - 1 if node.target is aten.linear.default else 1
            known = [attribute(module, a) is not None for a in node.args[1:3] if a is not None]
            return node if place == channels and all(known) else None
        before = _axis_before(node, place)
        if before is None:
            return None
        node, place = node.args[0], before
    return None


def _axis_before(node: Node, axis: int) -> int | None:
    """Where `axis` of a moved tensor lies in what was moved; None for an operator that computes or splits the axis."""
    import torch

    aten = torch.ops.aten
    if node.target in (aten.dropout.default, aten.clone.default, aten.contiguous.default, aten.alias.default):
        return axis  # dropout is traced in evaluation, where it does nothing
    if node.target in (aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim):
        return _same_axis(node.args[0].meta["val"].shape, node.meta["val"].shape, axis)
    rank = node.meta["val"].ndim if node.op == "call_function" and hasattr(node.meta.get("val"), "ndim") else 0
    if node.target is aten.permute.default:
        return int(node.args[1][axis]) % rank
    if node.target is aten.transpose.int:
        first, second = (int(a) % rank for a in node.args[1:3])
        return {first: second, second: first}.get(axis, axis)
    return None


def _same_axis(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """The axis in front of a reshape that a reshape keeps whole.

    >>> _same_axis((1, 64, 4, 4), (1, 64, 16), 1), _same_axis((2, 16, 48), (32, 48), 1), _same_axis((1, 6), (2, 3), 1)
    (1, 2, None)
    """
    for place, size in enumerate(before):
        if size == after[axis] and prod(before[:place]) == prod(after[:axis]):
            return place
    return None


def scale_channels(module: GraphModule, layer: Node, gain: torch.Tensor, offset: torch.Tensor | None = None) -> None:
    """layer(x; W, b) becomes layer(x; diag(g) W, g b + o), with g and o `[C]` float64, for each output channel."""
    weight = attribute(module, layer.args[1])
    assert weight is not None  # channel_layer() refuses the others
    bias = attribute(module, layer.args[2]) if len(layer.args) > 2 else None
    shift = None if bias is None else bias.double() * gain
    if offset is not None:
        shift = offset if shift is None else shift + offset
    scaled = weight.double() * gain.reshape(-1, *[1] * (weight.ndim - 1))
    new_weight = constant(module, layer, "scaled_weight", scaled.to(weight.dtype))
    new_bias = None if shift is None else constant(module, layer, "scaled_bias", shift.to(weight.dtype))
    layer.args = (layer.args[0], new_weight, new_bias, *layer.args[3:])

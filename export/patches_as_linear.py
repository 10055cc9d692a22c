"""Patch embedding as a Linear: a convolution whose kernel is its stride reads each pixel once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgevit.export.rewrite import Node, attribute, call, constant, single_user

if TYPE_CHECKING:
    from torch.fx import GraphModule


def patches_as_linear(module: GraphModule) -> int:
    """Turn the convolution into the matrix product it is.

    conv2d(x, W, b, stride=kernel) -> reshape [B, C, hw] -> transpose [B, hw, C]

    becomes reshape [B, c, h, p, w, q] -> permute [B, h, w, c, p, q] -> reshape [B, hw, cpq] -> linear(W, b): the same
    sums, as one matrix product that integer kernels run faster than a 16 x 16 convolution.
    """
    import torch

    aten, matched = torch.ops.aten, 0
    for conv in list(module.graph.nodes):
        if conv.target is not aten.conv2d.default:
            continue
        transposed = _transposed(conv)
        weight = attribute(module, conv.args[1])
        if transposed is None or weight is None or not _reads_once(conv, weight.shape[2:]):
            continue
        batch, channels, height, width = conv.args[0].meta["val"].shape
        p, q = weight.shape[2:]
        h, w = height // p, width // q
        x = call(module, conv, aten.reshape.default, conv.args[0], [batch, channels, h, p, w, q])
        x = call(module, conv, aten.permute.default, x, [0, 2, 4, 1, 3, 5])
        x = call(module, conv, aten.reshape.default, x, [batch, h * w, channels * p * q])
        flat = constant(module, conv, "patch_weight", weight.flatten(1))
        bias = conv.args[2] if len(conv.args) > 2 else None
        transposed.replace_all_uses_with(call(module, conv, aten.linear.default, x, flat, bias))
        matched += 1
    return matched


def _transposed(conv: Node) -> Node | None:
    """The node that holds `[B, hw, C]`, if the convolution's only use leads there."""
    import torch

    aten = torch.ops.aten
    flat = single_user(conv)
    batch, channels, height, width = conv.meta["val"].shape
    shape = getattr(flat.meta.get("val"), "shape", ()) if flat is not None else ()  # a split has several results
    if flat is None or list(shape) != [batch, channels, height * width]:
        return None
    out = single_user(flat)
    if out is None or out.target not in (aten.transpose.int, aten.permute.default):
        return None
    return out if list(out.meta["val"].shape) == [batch, height * width, channels] else None


def _reads_once(conv: Node, kernel: Sequence[int]) -> bool:
    """Stride equals kernel, no padding, no dilation, one group, and the image is a whole number of patches."""
    defaults = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
    args = [*conv.args, *defaults[len(conv.args) :]]
    stride, padding, dilation, groups = args[3:7]
    size = conv.args[0].meta["val"].shape[2:]
    return bool(
        list(stride) == list(kernel)
        and set(padding) == {0}
        and set(dilation) == {1}
        and groups == 1
        and all(s % k == 0 for s, k in zip(size, kernel, strict=True))
    )

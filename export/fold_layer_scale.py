"""LayerScale (arXiv:2103.17239, section 2): a gain per channel moves into the Linear or Conv in front of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.export.output_channels import channel_layer, scale_channels
from edgevit.export.rewrite import Node, attribute

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule


def fold_layer_scale(module: GraphModule) -> int:
    """linear(x; W, b) · g   becomes   linear(x; diag(g) W, g b), for a constant g of one number per output channel.

    g is `[C]` behind a Linear, `[C, 1, 1]` or `[1, C, 1, 1]` behind a Conv. Left alone where g is of another shape, and
    where something else reads the product's other factor.
    """
    import torch

    aten, matched = torch.ops.aten, 0
    for product in list(module.graph.nodes):
        if product.target not in (aten.mul.Tensor, aten.mul_.Tensor):
            continue
        for value, factor in (product.args, product.args[::-1]):
            gain = _constant(module, factor)
            axis = None if gain is None else _channels(gain.shape, product.meta["val"].shape)
            layer = None if axis is None else channel_layer(module, value, axis)
            if gain is None or layer is None or value.meta["val"].shape != product.meta["val"].shape:
                continue
            scale_channels(module, layer, gain.flatten().double())
            product.replace_all_uses_with(value)
            module.graph.erase_node(product)
            matched += 1
            break
    return matched


def _constant(module: GraphModule, node: Node) -> torch.Tensor | None:
    """A constant, or one that was given another shape."""
    import torch

    moves = (torch.ops.aten.reshape.default, torch.ops.aten.unsqueeze.default)
    if getattr(node, "op", None) == "call_function" and node.target in moves:
        inner = _constant(module, node.args[0])
        return None if inner is None else inner.reshape(node.meta["val"].shape)
    return attribute(module, node)


def _channels(gain: torch.Size, shape: torch.Size) -> int | None:
    """The axis of `shape` along which a gain has one number for each place; None for a gain of any other shape."""
    full = (*[1] * (len(shape) - len(gain)), *gain)
    axes = [i for i, size in enumerate(full) if size != 1]
    return axes[0] if len(axes) == 1 and full[axes[0]] == shape[axes[0]] else None

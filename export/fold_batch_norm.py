"""Batch normalization moves into the Linear or Conv in front of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.export.output_channels import channel_layer, scale_channels
from edgevit.export.rewrite import attribute

if TYPE_CHECKING:
    from torch.fx import GraphModule


def fold_batch_norm(module: GraphModule) -> int:
    """conv(x; W, b) -> batch_norm(mean, var, g, o)   becomes   conv(x; s W, s (b - mean) + o), s = g / sqrt(var + eps).

    Behind a Linear too, and with the reshapes around it that LeViT writes: `[B, N, C]` -> `[B N, C]`. Left alone where
    something else reads the layer's output, and where the norm stands in front of the layer instead.
    """
    import torch

    matched = 0
    for norm in list(module.graph.nodes):
        if norm.target is not torch.ops.aten.batch_norm.default or norm.args[5]:  # with the statistics of the batch
            continue
        gain, offset, mean, variance = (attribute(module, a) for a in norm.args[1:5])
        layer = channel_layer(module, norm.args[0], 1)
        if layer is None or mean is None or variance is None:
            continue
        scale = (variance.double() + norm.args[7]).rsqrt()
        if gain is not None:
            scale = scale * gain.double()
        shift = -mean.double() * scale
        if offset is not None:
            shift = shift + offset.double()
        scale_channels(module, layer, scale, shift)
        norm.replace_all_uses_with(norm.args[0])
        module.graph.erase_node(norm)
        matched += 1
    return matched

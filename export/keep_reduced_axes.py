"""A mean over tokens keeps their axis until a reshape drops it: OpenVINO fuses wrongly what stands behind the other.

OpenVINO 2026.4 takes a multiplication and a FakeQuantize behind a reduction into the reduction's kernel. Where the
reduction dropped an axis in front of the channels, the kernel applies a factor per channel along the wrong axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.export.rewrite import call

if TYPE_CHECKING:
    from torch.fx import GraphModule


def keep_reduced_axes(module: GraphModule) -> int:
    """mean(x, axes) -> [B, C]   becomes   reshape(mean(x, axes, keepdim)) -> [B, C]; sums and maxima too.

    Not where the axes are the last ones: what is left in front of them keeps its place.
    """
    import torch

    aten, matched = torch.ops.aten, 0
    for node in list(module.graph.nodes):
        if node.target not in (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default):
            continue
        rank, shape = node.args[0].meta["val"].ndim, list(node.meta["val"].shape)
        axes = {axis % rank for axis in node.args[1] or range(rank)}
        if len(shape) == rank or axes == set(range(rank - len(axes), rank)):  # keeps its axes, or drops the last ones
            continue
        kept = call(module, node, node.target, node.args[0], sorted(axes), True, **node.kwargs)
        node.replace_all_uses_with(call(module, node, aten.reshape.default, kept, shape))
        module.graph.erase_node(node)
        matched += 1
    return matched

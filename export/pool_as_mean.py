"""Pooling to one place is a mean: torch's own decomposition names the strides that one kernel happens to return."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.export.rewrite import call

if TYPE_CHECKING:
    from torch.fx import GraphModule


def pool_as_mean(module: GraphModule) -> int:
    """adaptive_avg_pool2d(x, 1) -> mean(x, [-2, -1], keepdim)."""
    import torch

    aten, matched = torch.ops.aten, 0
    for node in list(module.graph.nodes):
        if node.target is aten.adaptive_avg_pool2d.default and list(node.meta["val"].shape[-2:]) == [1, 1]:
            node.replace_all_uses_with(call(module, node, aten.mean.dim, node.args[0], [-2, -1], True))
            matched += 1
    return matched

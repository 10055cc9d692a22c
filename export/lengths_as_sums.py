"""The length of a vector in operators that every runtime has a kernel of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.export.rewrite import call

if TYPE_CHECKING:
    from torch.fx import GraphModule


def lengths_as_sums(module: GraphModule) -> int:
    """linalg_vector_norm(x, 2, axes) -> sqrt(sum(x · x, axes)), as normalized vectors of attention are traced."""
    import torch

    aten, matched = torch.ops.aten, 0
    for node in list(module.graph.nodes):
        if node.target is not aten.linalg_vector_norm.default or len(node.args) < 3:
            continue
        x, order, axes = node.args[:3]
        if order != 2 or axes is None or node.kwargs.get("dtype") is not None:
            continue
        keeps = node.args[3] if len(node.args) > 3 else node.kwargs.get("keepdim", False)
        total = call(module, node, aten.sum.dim_IntList, call(module, node, aten.mul.Tensor, x, x), axes, keeps)
        node.replace_all_uses_with(call(module, node, aten.sqrt.default, total))
        matched += 1
    return matched

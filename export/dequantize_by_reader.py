"""Every reader of a quantized tensor has a dequantizer of its own, where a delegate takes readers together with theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.export.rewrite import call

if TYPE_CHECKING:
    from torch.fx import GraphModule


def dequantize_by_reader(module: GraphModule) -> int:
    """q -> dq -> (a, b) becomes q -> (dq -> a, dq -> b).

    XNNPACK's partitioner joins the readers of one dequantizer. Where one is the residual add behind the other's branch,
    and the branch has an operator outside, that part would be in front of and behind it: a cycle.
    """
    import torch

    target, matched = torch.ops.quantized_decomposed.dequantize_per_tensor.default, 0
    for node in [n for n in module.graph.nodes if n.target is target]:
        for user in list(node.users)[1:]:
            user.replace_input_with(node, call(module, node, target, *node.args, **node.kwargs))
            matched += 1
    return matched

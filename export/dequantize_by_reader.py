"""Every reader of a quantized tensor has a dequantizer of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.export.rewrite import call

if TYPE_CHECKING:
    from torch.fx import GraphModule

TARGET = "quantized_decomposed.dequantize_per_tensor.default"  # by name: torch registers it where something quantizes


def dequantize_by_reader(module: GraphModule) -> int:
    """One DQ -> (a, b) becomes DQ -> a, DQ -> b.

    XNNPACK's partitioner joins the readers of one dequantizer. Where one is the residual add behind the other's branch,
    and the branch has an operator outside, that part would be in front of and behind it: a cycle.
    """
    matched = 0
    for node in [n for n in module.graph.nodes if str(n.target) == TARGET]:
        for user in list(node.users)[1:]:
            user.replace_input_with(node, call(module, node, node.target, *node.args, **node.kwargs))
            matched += 1
    return matched

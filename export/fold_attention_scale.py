"""The attention scale moves into the query's Linear: one multiplication of the whole query less per block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.export.rewrite import Node, attribute, constant

if TYPE_CHECKING:
    from torch.fx import GraphModule


def fold_attention_scale(module: GraphModule) -> int:
    """Scale the query's weights instead of the query.

    linear(x, W, b) -> reshape -> permute -> q;  attention(q, k, v, scale=s)

    becomes linear(x, s W, s b) -> ... -> attention(..., scale=1). Left alone where the query has other readers, a norm
    of its own, or is the key or value too.
    """
    import torch

    aten, matched = torch.ops.aten, 0
    for attention in list(module.graph.nodes):
        if attention.target is not aten.scaled_dot_product_attention.default:
            continue
        scale = attention.kwargs.get("scale") or attention.args[0].meta["val"].shape[-1] ** -0.5
        linear = _query_linear(attention.args[0])
        if scale == 1 or linear is None or attention.args[0] in attention.args[1:3]:
            continue
        arguments = list(linear.args)
        for index in range(1, len(arguments)):
            value = attribute(module, arguments[index])
            if value is not None:
                arguments[index] = constant(module, linear, "scaled_query", value * scale)
        linear.args = tuple(arguments)
        attention.kwargs = {**attention.kwargs, "scale": 1.0}
        matched += 1
    return matched


def _query_linear(query: Node) -> Node | None:
    """The Linear behind q when only shape changes lie between and nothing else reads them."""
    import torch

    aten, node = torch.ops.aten, query
    moves = (aten.permute.default, aten.reshape.default, aten.transpose.int)
    while node.op == "call_function" and node.target in moves and len(node.users) == 1:
        node = node.all_input_nodes[0]
    return node if node.target is aten.linear.default and len(node.users) == 1 else None

"""What does not depend on the images is computed once, here: positions, index vectors, expanded tokens."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from edgevit.export.rewrite import Node, constant

if TYPE_CHECKING:
    from torch.fx import GraphModule


def fold_constants(module: GraphModule) -> int:
    """op(constants) -> reader   becomes   constant -> reader. Integer weights stay as stored, and dequantizers."""
    import torch

    values: dict[Node, Any] = {}
    for node in list(module.graph.nodes):
        known = node.op == "call_function" and all(part in values for part in node.all_input_nodes)
        if node.op == "get_attr":
            values[node] = attrgetter(str(node.target))(module)
        elif node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)  # a check of the trace, which it passed
        elif known and "quantize" not in str(node.target):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    ends = [n for n in values if n.op == "call_function" and any(user not in values for user in n.users)]
    folded = [node for node in ends if isinstance(values[node], torch.Tensor)]
    for node in folded:
        node.replace_all_uses_with(constant(module, node, "folded", values[node].detach().clone()))
    return len(folded)

"""Attention masks that hide nothing.

transformers leaves a mask out when it hides nothing, but not while it is traced: each attention of the program would
then add a constant that changes no value, keeps fused kernels away, and makes the dense baseline slower than it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

MASK = 3  # position of attn_mask in scaled_dot_product_attention


def drop_idle_masks(program: ExportedProgram) -> int:
    """sdpa(q, k, v, mask)  becomes  sdpa(q, k, v)  where the mask is a constant, all true or all zero; how many."""
    import torch

    constant: set[Node] = set()  # depends on no input and no weight
    dropped = 0
    for node in program.graph.nodes:
        if node.op == "call_function" and constant.issuperset(node.all_input_nodes):
            constant.add(node)
        if node.target is not torch.ops.aten.scaled_dot_product_attention.default:
            continue
        mask = node.args[MASK] if len(node.args) > MASK else node.kwargs.get("attn_mask")
        if mask not in constant:
            continue
        value = _value(mask, {})
        if not bool((value if value.dtype == torch.bool else value == 0).all()):
            continue
        if len(node.args) > MASK:
            node.update_arg(MASK, None)
        else:
            node.update_kwarg("attn_mask", None)
        dropped += 1
    if dropped:
        program.graph.eliminate_dead_code()
    return dropped


def _value(node: Node, known: dict[Node, Any]) -> Any:
    """Compute a constant node."""
    from torch.fx.node import map_arg

    if node not in known:
        target: Any = node.target
        arguments = map_arg((node.args, node.kwargs), lambda source: _value(source, known))
        known[node] = target(*arguments[0], **arguments[1])
    return known[node]

"""Attention masks that hide nothing.

transformers leaves a mask out when it hides nothing, but not while it is traced: each attention of the program would then
add a constant that changes no value, keeps fused kernels away, and makes the dense baseline slower than it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

MASK = 3  # position of attn_mask in scaled_dot_product_attention


def drop_idle_masks(program: ExportedProgram) -> int:
    """sdpa(q, k, v, mask)  becomes  sdpa(q, k, v)  where the mask is a constant, all true or all zero; how many."""
    import torch

    values: dict[Node, torch.Tensor | None] = {}
    dropped = 0
    for node in program.graph.nodes:
        if node.target is not torch.ops.aten.scaled_dot_product_attention.default:
            continue
        mask = node.args[MASK] if len(node.args) > MASK else node.kwargs.get("attn_mask")
        value = None if mask is None else _constant(mask, values)
        if value is None or not bool((value if value.dtype == torch.bool else value == 0).all()):
            continue
        if len(node.args) > MASK:
            node.update_arg(MASK, None)
        else:
            node.update_kwarg("attn_mask", None)
        dropped += 1
    if dropped:
        program.graph.eliminate_dead_code()
    return dropped


def _constant(node: Node, values: dict[Node, torch.Tensor | None]) -> Any:
    """The value of a node that depends on no input and no weight, or None."""
    if node in values:
        return values[node]
    result = None
    known = {source: _constant(source, values) for source in node.all_input_nodes}
    if node.op == "call_function" and all(value is not None for value in known.values()):
        from torch.fx.node import map_arg

        result = node.target(*map_arg(node.args, known.__getitem__), **map_arg(node.kwargs, known.__getitem__))
    values[node] = result
    return result

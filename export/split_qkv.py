"""One fused qkv Linear becomes three: their outputs need no slicing, so attention kernels can absorb the transposes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.export.rewrite import Node, attribute, call, constant, single_user

if TYPE_CHECKING:
    from torch.fx import GraphModule


def split_qkv(module: GraphModule) -> int:
    """Cut the weights into thirds.

    linear(x, W, b) -> reshape [B, N, 3, H, d] -> permute [3, B, H, N, d] -> unbind -> q, k, v

    becomes, for each third of W and b: linear(x, W_i, b_i) -> reshape [B, N, H, d] -> permute [B, H, N, d].
    """
    import torch

    aten, matched = torch.ops.aten, 0
    for linear in list(module.graph.nodes):
        if linear.target is not aten.linear.default:
            continue
        shaped = single_user(linear)
        permuted = single_user(shaped) if shaped is not None and shaped.target is aten.reshape.default else None
        weight = attribute(module, linear.args[1])
        if shaped is None or permuted is None or permuted.target is not aten.permute.default or weight is None:
            continue
        shape = list(shaped.args[1])
        parts = _parts(permuted)
        if len(shape) != 5 or shape[2] != 3 or list(permuted.args[1]) != [2, 0, 3, 1, 4] or parts is None:
            continue
        bias = attribute(module, linear.args[2]) if len(linear.args) > 2 else None
        for index, part in parts:
            w = constant(module, linear, f"{'qkv'[index]}_weight", weight.chunk(3)[index])
            b = None if bias is None else constant(module, linear, f"{'qkv'[index]}_bias", bias.chunk(3)[index])
            x = call(module, linear, aten.linear.default, linear.args[0], w, b)
            x = call(module, linear, aten.reshape.default, x, [*shape[:2], *shape[3:]])
            part.replace_all_uses_with(call(module, linear, aten.permute.default, x, [0, 2, 1, 3]))
        matched += 1
    return matched


def _parts(permuted: Node) -> list[tuple[int, Node]] | None:
    """(index, node) of q, k and v: through unbind + getitem, or through select; None for any other use."""
    import operator

    import torch

    aten = torch.ops.aten
    unbind = single_user(permuted)
    if unbind is not None and unbind.target is aten.unbind.int:
        users = list(unbind.users)
        return [(int(u.args[1]), u) for u in users] if all(u.target is operator.getitem for u in users) else None
    users = list(permuted.users)
    if all(u.target is aten.select.int and u.args[1] == 0 for u in users):
        return [(int(u.args[2]), u) for u in users]
    return None

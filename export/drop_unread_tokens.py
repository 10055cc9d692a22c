"""The last block computes only what the head reads: a class token needs all keys, but one query and one MLP row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgevit.export.rewrite import Node, call

if TYPE_CHECKING:
    from torch.fx import GraphModule

FULL = 0  # a demand for the whole tensor; other demands are the dimension (1 or 2) whose first rows are enough


def drop_unread_tokens(module: GraphModule) -> int:
    """Shorten the chain in front of a head that reads few rows.

    ... -> attention(q, k, v) -> proj -> add -> norm -> mlp -> add -> norm -> x [B, N, C] -> x[:, 0]

    becomes the same chain on the first P rows alone, from the query on: rows of these operators do not mix. P is the
    last row that the `select`s read, plus one. The cut moves up until an operator mixes rows (keys, values, a merge),
    or another reader needs all of them.
    """
    matched = 0
    for node in list(module.graph.nodes):
        rows = _rows_read(node)
        if rows is None or rows >= node.meta["val"].shape[1]:
            continue
        readers = list(node.users)
        short = _shorten(module, node, rows)
        for reader in readers:
            reader.replace_input_with(node, short)
        matched += 1
    return matched


def _rows_read(node: Node) -> int | None:
    """How many leading rows of `[B, N, C]` are read, when every reader is a `select` of one of them."""
    import torch

    users = list(node.users)
    if len(getattr(node.meta.get("val"), "shape", ())) != 3 or not users or _asks(node, 1) is None:
        return None
    if any(u.target is not torch.ops.aten.select.int or u.args[1] != 1 or int(u.args[2]) < 0 for u in users):
        return None
    return 1 + max(int(u.args[2]) for u in users)


def _shorten(module: GraphModule, end: Node, rows: int) -> Node:
    """A node equal to the first `rows` rows of `end`."""
    import torch

    demands: dict[Node, set[int]] = {end: {1}}
    chain: dict[Node, dict[Node, int]] = {}
    for node in reversed(module.graph.nodes):
        if node is not end and node in demands:
            demands[node] |= {FULL for user in node.users if user not in chain}
        wanted = demands.get(node, set())
        asked = _asks(node, next(iter(wanted))) if len(wanted) == 1 and FULL not in wanted else None
        if asked is not None:
            chain[node] = asked
            for source in node.all_input_nodes:
                demands.setdefault(source, set()).add(asked.get(source, FULL))
    copies: dict[tuple[Node, int], Node] = {}
    for node in [n for n in module.graph.nodes if n in chain]:
        for source, dim in chain[node].items():
            if (source, dim) not in copies:
                cut = torch.ops.aten.slice.Tensor
                copies[source, dim] = call(module, node, cut, source, dim, 0, rows)
        args: list[Any] = [copies[a, chain[node][a]] if _is_asked(a, chain[node]) else a for a in node.args]
        if node.target is torch.ops.aten.reshape.default:
            args[1] = [args[1][0], rows, *args[1][2:]]
        copies[node, next(iter(demands[node]))] = call(module, node, node.target, *args, **node.kwargs)
    return copies[end, 1]


def _is_asked(value: Any, asked: dict[Node, int]) -> bool:
    """Arguments may be lists, which no dict holds."""
    return not isinstance(value, list | tuple) and value in asked


def _asks(node: Node, dim: int) -> dict[Node, int] | None:
    """Which inputs need only their first rows (and along which dimension) to give `node`'s first rows along `dim`.

    None when the operator mixes rows or is not known.
    """
    import torch

    aten = torch.ops.aten
    first: Any = node.args[0] if node.args else None
    if dim == 1 and node.target in (aten.layer_norm.default, aten.linear.default):
        return {first: 1}
    if node.target in (aten.gelu.default, aten.dropout.default, aten.clone.default):
        return {first: dim}
    if dim == 1 and node.target in (aten.add.Tensor, aten.mul.Tensor):
        return {a: 1 for a in node.args[:2] if _shape(a)[:2] == _shape(node)[:2]}
    if dim == 1 and node.target is aten.reshape.default and _shape(first)[:2] == _shape(node)[:2]:
        return {first: 1}
    if _swaps_heads(node):
        return {first: 3 - dim}
    if dim == 2 and node.target is aten.scaled_dot_product_attention.default and _mask_is_shared(node):
        return {first: 2} if first not in node.args[1:] else None
    return None


def _shape(value: Any) -> list[int]:
    return list(getattr(getattr(value, "meta", {}).get("val"), "shape", ()))


def _mask_is_shared(attention: Node) -> bool:
    """No mask, or one row of it for all queries; nothing causal."""
    mask = attention.kwargs.get("attn_mask", attention.args[3] if len(attention.args) > 3 else None)
    causal = attention.kwargs.get("is_causal", len(attention.args) > 5 and attention.args[5])
    return not causal and (mask is None or _shape(mask)[-2] == 1)


def _swaps_heads(node: Node) -> bool:
    """Dimensions 1 and 2 of four change places."""
    import torch

    aten = torch.ops.aten
    if len(_shape(node)) != 4:
        return False
    if node.target is aten.transpose.int:
        return {int(a) for a in node.args[1:]} == {1, 2}
    return node.target is aten.permute.default and list(node.args[1]) == [0, 2, 1, 3]

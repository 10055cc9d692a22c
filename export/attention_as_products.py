"""Fused attention and matrix products of many dimensions become products of three: what delegates know by name."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from edgevit.export.rewrite import Node, call

if TYPE_CHECKING:
    from torch.fx import GraphModule


def attention_as_products(module: GraphModule) -> int:
    """attention(q, k, v, mask) -> bmm(softmax(bmm(q · scale, kᵀ) + mask), v), and matmul -> bmm, on `[B * H, N, d]`.

    Left to itself torch decomposes them with a guard against rows that are masked as a whole (none is here), scalars
    that lie outside the tensors, and an `expand` in front of every product.
    """
    import torch

    aten, matched = torch.ops.aten, 0
    for node in list(module.graph.nodes):
        if node.target is aten.scaled_dot_product_attention.default:
            matched += _attention(module, node)
        elif node.target is aten.matmul.default:
            matched += _product(module, node)
    return matched


def _attention(module: GraphModule, node: Node) -> int:
    import torch

    aten = torch.ops.aten
    options = dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False)) | dict(node.kwargs)
    q, k, v = node.args[:3]
    same = q.meta["val"].shape[:-2] == k.meta["val"].shape[:-2] == v.meta["val"].shape[:-2]
    if options.get("dropout_p") or options.get("is_causal") or options.get("enable_gqa") or not same:
        return 0
    mask, scale = options.get("attn_mask"), options.get("scale") or q.meta["val"].shape[-1] ** -0.5
    if mask is not None and not mask.meta["val"].dtype.is_floating_point:
        return 0
    q = call(module, node, aten.mul.Tensor, q, scale)
    logits = _bmm(module, node, q, call(module, node, aten.transpose.int, k, -2, -1))
    if mask is not None:
        logits = call(module, node, aten.add.Tensor, logits, mask)
    shares = call(module, node, aten.softmax.int, logits, -1)
    node.replace_all_uses_with(_bmm(module, node, shares, v))
    return 1


def _product(module: GraphModule, node: Node) -> int:
    a, b = (part.meta["val"].shape for part in node.args)
    if len(a) < 3 or a[:-2] != b[:-2]:
        return 0
    node.replace_all_uses_with(_bmm(module, node, *node.args))
    return 1


def _bmm(module: GraphModule, before: Node, a: Node, b: Node) -> Node:
    """`[..., N, d]` · `[..., d, M]` → `[..., N, M]`, by way of three dimensions."""
    import torch

    aten, (*outer, rows, _) = torch.ops.aten, a.meta["val"].shape
    flat = [call(module, before, aten.reshape.default, x, [prod(outer), *x.meta["val"].shape[-2:]]) for x in (a, b)]
    out = call(module, before, aten.bmm.default, *flat)
    return call(module, before, aten.reshape.default, out, [*outer, rows, b.meta["val"].shape[-1]])

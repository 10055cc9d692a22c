"""Fused attention of one image becomes its products on `[H, N, d]`: kernels of ONNX Runtime absorb what lies around."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.export.rewrite import Node, call

if TYPE_CHECKING:
    from torch.fx import GraphModule


def attention_by_head(module: GraphModule) -> int:
    """Batch 1 alone: without the batch axis a transpose of heads and tokens is one a matrix product can take in.

    linear -> reshape [1, N, H, d] -> permute [1, H, N, d] -> attention(q, k, v, mask) -> [1, H, N, d]

    becomes linear -> reshape [N, H, d] -> permute [H, N, d], then softmax(q · kᵀ · scale + mask) · v, then the axis
    again. A fused operator would be taken apart by the exporter, with the scale's root on q and on k.
    """
    import torch

    aten, matched = torch.ops.aten, 0
    for node in list(module.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default or node.meta["val"].ndim != 4:
            continue
        options = dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False)) | dict(node.kwargs)
        q, k, v = node.args[:3]
        plain = not options.get("dropout_p") and not options.get("is_causal") and not options.get("enable_gqa")
        if not plain or any(part.meta["val"].shape[0] != 1 for part in (q, k, v)):
            continue
        q, k, v = (_without_batch(module, node, part) for part in (q, k, v))
        scale = options.get("scale") or q.meta["val"].shape[-1] ** -0.5
        logits = call(module, node, aten.matmul.default, q, call(module, node, aten.permute.default, k, [0, 2, 1]))
        logits = call(module, node, aten.mul.Tensor, logits, scale)
        mask = options.get("attn_mask")
        if mask is not None:
            logits = call(module, node, aten.add.Tensor, logits, _squeezed(module, node, mask))
        shares = call(module, node, aten.softmax.int, logits, -1)
        out = call(module, node, aten.matmul.default, shares, v)
        node.replace_all_uses_with(call(module, node, aten.unsqueeze.default, out, 0))
        matched += 1
    return matched


def _squeezed(module: GraphModule, before: Node, mask: Node) -> Node:
    """`[1, ?, ?, N]` → `[?, ?, N]`; masks of fewer dimensions broadcast as they are."""
    import torch

    if mask.meta["val"].ndim < 4:
        return mask
    return call(module, before, torch.ops.aten.reshape.default, mask, list(mask.meta["val"].shape[1:]))


def _without_batch(module: GraphModule, before: Node, part: Node) -> Node:
    """`[1, H, N, d]` → `[H, N, d]`, as a permute of what was there before the heads came first."""
    import torch

    aten = torch.ops.aten
    shape = list(part.meta["val"].shape[1:])
    if part.target is aten.permute.default and list(part.args[1]) == [0, 2, 1, 3]:
        inner = call(module, before, aten.reshape.default, part.args[0], [shape[1], shape[0], shape[2]])
        return call(module, before, aten.permute.default, inner, [1, 0, 2])
    return call(module, before, aten.reshape.default, part, shape)

"""LayerNorm's gain and offset move into the Linears that read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgevit.export.rewrite import attribute, constant

if TYPE_CHECKING:
    from torch.fx import GraphModule


def fold_norm_affine(module: GraphModule) -> int:
    """layer_norm(x, g, o) -> linear(W, b)   becomes   layer_norm(x) -> linear(W · diag(g), b + W · o).

    Only where every reader is a Linear. The normalization then has no multiplication behind it, and a quantizer can
    follow it directly.
    """
    aten, matched = torch.ops.aten, 0
    for norm in list(module.graph.nodes):
        if norm.target is not aten.layer_norm.default or len(norm.args) < 4:
            continue
        gain, offset = attribute(module, norm.args[2]), attribute(module, norm.args[3])
        readers = list(norm.users)
        if gain is None or gain.ndim != 1 or not readers or any(r.target is not aten.linear.default for r in readers):
            continue
        if any(r.args[0] is not norm or attribute(module, r.args[1]) is None for r in readers):
            continue
        for reader in readers:
            weight = attribute(module, reader.args[1])
            assert weight is not None
            bias = attribute(module, reader.args[2]) if len(reader.args) > 2 else None
            if offset is not None:
                shift = (weight.double() @ offset.double()).float()
                bias = shift if bias is None else bias + shift
            new_bias = None if bias is None else constant(module, reader, "folded_bias", bias)
            reader.args = (norm, constant(module, reader, "folded_weight", weight * gain), new_bias)
        norm.args = (norm.args[0], norm.args[1], None, None, *norm.args[4:])
        matched += 1
    return matched

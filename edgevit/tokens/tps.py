"""TPS: keep the tokens the class token attends to, squeeze each of the others into the kept one it resembles most.

Wei et al., "Joint Token Pruning and Squeezing Towards More Aggressive Compression of Vision Transformers", CVPR 2023
(arXiv:2304.10716), the variant without a trained predictor (eTPS); written from the formulas.

    a_j = mean over heads of softmax(q_cls · kᵀ · scale)_j       keep the k patches with the largest a, in that order
    c_ij = cos(x_i, x_j)    for i pruned, j kept                 n(i) = argmax_j c_ij
    y_j = (e x_j + Σ e^c_ij x_i) / (e + Σ e^c_ij)    over the i with n(i) = j     (temperature 1)

Prefix tokens are protected and take nothing in. The reference finds n(i) by equality with the largest cosine, so an
exact tie counts twice there; here the first wins. Squeezing changes no later attention (no proportional attention);
sizes are counted only for models that pool over patches.
"""

from __future__ import annotations

from typing import ClassVar

from edgevit.tokens.base import ByShare
from edgevit.tokens.lowering import put, take_rows
from edgevit.tokens.plans import Merge, with_prefix
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import class_attention, unit


class TPS(ByShare):
    """`tps:keep=0.7@4,7,10`: keep 70 % of the patches at blocks 4, 7 and 10, squeeze the others into them."""

    name: ClassVar[str] = "tps"
    needs_class_token: ClassVar[bool] = True

    @staticmethod
    def plan(site: Site) -> Merge:
        """Order the patches by the class token's attention; match what goes to what stays on `site.x`."""
        attention = class_attention(site.tap, site.prefix)
        keep = site.tokens_out - site.prefix
        order = attention.topk(attention.shape[1], dim=-1).indices
        features = unit(take_rows(site.x[:, site.prefix :], order, site.lowering))
        cosine, nearest = (features[:, keep:] @ features[:, :keep].transpose(1, 2)).max(dim=-1)  # [B, R]
        merged = order[:, keep:] + site.prefix
        return Merge(
            order=with_prefix(site.prefix, order[:, :keep]),
            merged=merged,
            target=nearest + site.prefix,
            count=site.x.shape[1],
            lowering=site.lowering,
            weight=1 + put(merged, (cosine - 1).exp() - 1, site.x.shape[1]),  # everything divided by e
        )

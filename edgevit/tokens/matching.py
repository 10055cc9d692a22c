"""Matching two given sets of patches, as ToMe matches even and odd positions."""

from __future__ import annotations

import torch

from edgevit.tokens.lowering import ascending, take, take_rows
from edgevit.tokens.plans import Merge
from edgevit.tokens.protocol import Site


def bipartite(site: Site, a: torch.Tensor, b: torch.Tensor, scores: torch.Tensor) -> Merge:
    """The best-scored tokens of `a` join their best of `b`, until `tokens_out` are left.

    a: `[B, Na]`, b: `[B, Nb]`, positions in the sequence, every patch in one of them. scores: `[B, Na, Nb]` float32.
    Order behind it: prefix, what is left of `a` in the order of `a`, then `b`.
    """
    count = site.tap.k.shape[2]
    merge = count - site.tokens_out
    order = scores.amax(dim=-1).topk(scores.shape[1], dim=-1).indices
    merged, kept = order[:, :merge], ascending(order[:, merge:])
    prefix = torch.arange(site.prefix, device=scores.device).expand(scores.shape[0], -1)
    nearest = take_rows(scores, merged, site.lowering).argmax(dim=-1)
    return Merge(
        order=torch.cat([prefix, take(a, kept, site.lowering), b], dim=1),
        merged=take(a, merged, site.lowering),
        target=nearest + (site.prefix + kept.shape[1]),
        count=count,
        lowering=site.lowering,
    )

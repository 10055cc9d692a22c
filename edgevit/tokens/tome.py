"""ToMe: bipartite soft matching, by merging.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (arXiv:2210.09461), sections 3 and appendix; written
from the formulas.

    m_i = mean over heads of K[h, i], L2-normalized          similarity S = m_A · m_Bᵀ (cosine)
    A, B = patches at even and odd positions of the sequence; prefix tokens take no part
    the r rows of A with the largest max_j S[i, j] merge into their argmax_j; several may share one
    y = Σ s x / Σ s,   s' = Σ s,   later logits + log s'     (size-weighted mean; proportional attention)

Order behind the block: prefix, unmerged A by position, B by position. Positions decide the next block's A and B, so
the order is part of the method.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from edgevit.tokens.base import Bipartite
from edgevit.tokens.lowering import ascending, take
from edgevit.tokens.plans import Merge, with_prefix
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import halves, key_metric


def similarity(site: Site) -> torch.Tensor:
    """Cosine of the head-mean keys of A and B: `[B, Na, Nb]` float32.

    Its argmax decides, and a NaN there is final.
    """
    metric = key_metric(site.tap, site.prefix)
    first_a, first_b = halves(site.prefix)
    return metric[:, first_a::2] @ metric[:, first_b::2].transpose(1, 2)


def match(site: Site, scores: torch.Tensor) -> Merge:
    """Merge the best-scored rows of A into their best B, until `tokens_out` are left. scores: `[B, Na, Nb]`."""
    count = site.tap.k.shape[2]
    merge = count - site.tokens_out
    first_a, first_b = halves(site.prefix)
    best, nearest = scores.max(dim=-1)
    order = best.topk(best.shape[1], dim=-1).indices
    merged, kept = order[:, :merge], ascending(order[:, merge:])
    b = torch.arange(scores.shape[2], device=scores.device).expand(scores.shape[0], -1)
    patches = torch.cat([kept * 2 + first_a, b * 2 + first_b], dim=1)
    return Merge(
        order=with_prefix(site.prefix, patches),
        merged=merged * 2 + (first_a + site.prefix),
        target=take(nearest, merged, site.lowering) + (site.prefix + kept.shape[1]),
        count=count,
        lowering=site.lowering,
    )


class ToMe(Bipartite):
    """`tome:r=8`: merge r tokens in each of the blocks."""

    name: ClassVar[str] = "tome"

    @staticmethod
    def plan(site: Site) -> Merge:
        """Match A to B on the head-mean keys of this block."""
        return match(site, similarity(site))

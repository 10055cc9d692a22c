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
from edgevit.tokens.matching import bipartite
from edgevit.tokens.plans import Merge
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import halves

SCALE, EPSILON = 1e3, 1e-6  # keys times 1e3, so that the operator's epsilon is nothing beside their squares


def similarity(site: Site) -> torch.Tensor:
    """Cosine of the head-mean keys of A and B, times their width: `[B, Na, Nb]` float32.

    Its argmax decides, and a NaN there is final. The division by the length is one by a root mean square, which
    runtimes have as one operator; neither factor changes an order.
    """
    keys = site.tap.k.to(torch.float32)
    total = keys.transpose(1, 2).sum(dim=2) * SCALE  # [B, N, d]
    length = torch.sqrt(total.pow(2).mean(dim=-1, keepdim=True) + EPSILON)
    metric = total / length * torch.ones(total.shape[-1])  # the pattern that runtimes know as RMSNorm
    first_a, first_b = (site.prefix + first for first in halves(site.prefix))
    return metric[:, first_a::2] @ metric[:, first_b::2].transpose(1, 2)


def match(site: Site, scores: torch.Tensor) -> Merge:
    """Merge the best-scored rows of A into their best B, until `tokens_out` are left. scores: `[B, Na, Nb]`."""
    count, batch = site.tap.k.shape[2], scores.shape[0]
    first_a, first_b = (site.prefix + first for first in halves(site.prefix))
    a = torch.arange(first_a, count, 2, device=scores.device).expand(batch, -1)
    b = torch.arange(first_b, count, 2, device=scores.device).expand(batch, -1)
    return bipartite(site, a, b, scores)


class ToMe(Bipartite):
    """`tome:r=8`: merge r tokens in each of the blocks."""

    name: ClassVar[str] = "tome"

    @staticmethod
    def plan(site: Site) -> Merge:
        """Match A to B on the head-mean keys of this block."""
        return match(site, similarity(site))

"""MCTF: fuse tokens that are alike, little attended and small, before the block's own attention is applied.

Lee, Choi, Kim, "Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers", CVPR 2024
(arXiv:2403.10030), section 3; written from the formulas. x is the block's input, a_j the attention that token j
receives in this block (mean over heads and queries), s the sizes; i in A (even positions), j in B (odd):

    W_ij = ((cos(x_i, x_j) + 1) / 2)^(1/τ_s) · (1 / (a_i a_j))^(1/τ_i) · (1 / (s_i s_j))^(1/τ_z),   τ = 1, 20, 40

    1. the ⌊r/2⌋ best-scored of A join their best B
    2. the r − ⌊r/2⌋ best-scored of B join their best A among those left, with all that joined them in 1.
    y = Σ w x / Σ w with w = a s,   s' = Σ s,   later logits + log s'

The block's attention is not computed again: with M the 0/1 matrix of the groups, A' = M diag(w) A Mᵀ / (M w) (keys
add up, queries are averaged), and A' multiplies values of the reduced tokens. So queries and keys see N tokens, and
values, output projection and feed-forward N'.

Scores are summed as logarithms, which ranks alike; the paper's divisions by the largest a and s change no rank either.
r is capped at half of the patches and where 10 tokens are left. Behind the block: prefix, A, B. All prefix tokens are
protected (the reference protects as many rows of A, which is not the same with two). Blocks 2 to the last by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from edgevit.tokens.base import Bipartite
from edgevit.tokens.lowering import ascending, one_hot, put, take, take_rows
from edgevit.tokens.plans import Merge, with_prefix
from edgevit.tokens.protocol import Placement, Site
from edgevit.tokens.scores import halves, received_attention, unit

if TYPE_CHECKING:
    from edgevit.stages import VitModel

TAU_SIMILARITY, TAU_ATTENTION, TAU_SIZE = 1.0, 20.0, 40.0
FEWEST_TOKENS = 10
FLOOR = 1e-6  # under every logarithm: float16 attention may round to 0


@dataclass(frozen=True)
class Fusion(Merge):
    """A merge that also says what becomes of the block's attention."""

    def mix(self, probabilities: torch.Tensor) -> torch.Tensor:
        """`[B, H, N, N]` → `[B, H, N', N']`: keys of a group add up, its queries are averaged; rows still sum to 1."""
        batch, heads, count, _ = probabilities.shape
        left = self.order.shape[1]
        keys = probabilities.permute(0, 3, 1, 2).reshape(batch, count, heads * count)
        spread = one_hot(self.target, left, keys.dtype).transpose(1, 2)  # [B, N', R]
        keys = take_rows(keys, self.order, self.lowering) + spread @ take_rows(keys, self.merged, self.lowering)
        queries = keys.reshape(batch, left, heads, count).permute(0, 3, 2, 1).reshape(batch, count, heads * left)
        mixed, _ = self.apply(queries, None)
        return mixed.reshape(batch, left, heads, left).permute(0, 2, 1, 3)


def scores(site: Site, received: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Logarithm of W: `[B, Na, Nb]` float32. received, size: `[B, N]`."""
    first_a, first_b = halves(site.prefix)
    features = unit(site.x[:, site.prefix :])
    cosine = features[:, first_a::2] @ features[:, first_b::2].transpose(1, 2)
    alone = -received.log() / TAU_ATTENTION - size.log() / TAU_SIZE
    alone = alone[:, site.prefix :]
    alike = ((cosine + 1) / 2).clamp_min(FLOOR).log() / TAU_SIMILARITY
    return alike + alone[:, first_a::2].unsqueeze(2) + alone[:, first_b::2].unsqueeze(1)


def fuse(site: Site, scored: torch.Tensor, weight: torch.Tensor) -> Fusion:
    """Both directions: A into B, then B into what is left of A. scored: `[B, Na, Nb]`."""
    prefix, low = site.prefix, site.lowering
    count = site.x.shape[1]
    forth = (count - site.tokens_out) // 2
    back = count - site.tokens_out - forth
    order = scored.amax(dim=-1).topk(scored.shape[1], dim=-1).indices
    joining_a, a = order[:, :forth], ascending(order[:, forth:])
    nearest = take_rows(scored, joining_a, low).argmax(dim=-1)  # [B, forth]
    best, home = take_rows(scored, a, low).max(dim=1)  # [B, Nb]; home: an entry of a
    order = best.topk(best.shape[1], dim=-1).indices
    joining_b, b = order[:, :back], ascending(order[:, back:])
    target_b = take(home, joining_b, low) + prefix
    own = (torch.arange(b.shape[1], device=b.device) + (prefix + a.shape[1])).expand(b.shape[0], -1)
    slot_of_b = put(torch.cat([joining_b, b], dim=1), torch.cat([target_b, own], dim=1), scored.shape[2])
    target_a = take(slot_of_b, nearest, low)
    first_a, first_b = halves(prefix)
    return Fusion(
        order=with_prefix(prefix, torch.cat([a * 2 + first_a, b * 2 + first_b], dim=1)),
        merged=torch.cat([joining_a * 2 + first_a, joining_b * 2 + first_b], dim=1) + prefix,
        target=torch.cat([target_a, target_b], dim=1),
        count=count,
        lowering=low,
        weight=weight,
    )


class MCTF(Bipartite):
    """`mctf:r=16`: fuse r tokens in each block but the first; `mctf:keep=0.65@4,7,10` is the paper's fast form."""

    name: ClassVar[str] = "mctf"
    placement: ClassVar[Placement] = "early"
    probabilities: ClassVar[bool] = True

    @classmethod
    def check_model(cls, vit: VitModel, restoring: bool) -> str | None:
        """Blocks must give queries and keys before values."""
        if not all(hasattr(block, "query_keys") for block in vit.blocks):
            return (
                f"{cls.name} fuses tokens between a block's queries and its values, and the blocks of {vit.family} are "
                "not taken apart there; use tome"
            )
        return super().check_model(vit, restoring)

    @staticmethod
    def default_blocks(depth: int) -> tuple[int, ...]:
        """All but the first."""
        return tuple(range(min(2, depth), depth + 1))

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """At most half of the patches, and ten tokens stay.

        >>> MCTF.tokens_after(197, 1, "r", 16), MCTF.tokens_after(21, 1, "r", 16), MCTF.tokens_after(9, 1, "r", 2)
        (181, 11, 9)
        """
        return max(Bipartite.tokens_after(tokens, prefix, key, value), min(FEWEST_TOKENS, tokens))

    @staticmethod
    def plan(site: Site) -> Fusion:
        """Score on the block's input and on the attention it is about to apply."""
        received = received_attention(site.tap).clamp_min(FLOOR)
        size = torch.ones_like(received) if site.size is None else site.size.to(torch.float32)
        return fuse(site, scores(site, received, size), received * size)

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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from edgevit.tokens.lowering import Lowering, ascending, one_hot, take_rows

if TYPE_CHECKING:
    from edgevit.stages import Tap, VitModel


@dataclass(frozen=True)
class Matching:
    """A ToMe decision: `merged` rows of A `[B, r]` go to rows `target` of B `[B, r]`; `kept` rows of A stay."""

    prefix: int
    first_a: int  # offset of the first A patch behind the prefix
    count: int  # N, prefix included
    kept: torch.Tensor
    merged: torch.Tensor
    target: torch.Tensor
    lowering: Lowering

    def _split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`[B, N, C]` → prefix `[B, P, C]`, A `[B, Na, C]`, B `[B, Nb, C]`."""
        patches = x[:, self.prefix :]
        return x[:, : self.prefix], patches[:, self.first_a :: 2], patches[:, 1 - self.first_a :: 2]

    def apply(self, x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Merge by a one-hot matmul; the size rides along as one more channel, so both move in one product."""
        weight = torch.ones_like(x[..., :1]) if size is None else size.unsqueeze(-1)
        weighted = x if size is None else x * weight
        prefix, a, b = self._split(torch.cat([weighted, weight], dim=-1))
        spread = one_hot(self.target, b.shape[1], x.dtype).transpose(1, 2)  # [B, Nb, r]
        b = b + spread @ take_rows(a, self.merged, self.lowering)
        merged = torch.cat([prefix, take_rows(a, self.kept, self.lowering), b], dim=1)
        total, new_size = merged[..., :-1], merged[..., -1:]
        return total / new_size, new_size.squeeze(-1)

    def slots(self) -> torch.Tensor:
        """`[B, N]` int64, as in `Plan.slots`; eager only (it scatters), used for pictures."""
        batch, kept = self.kept.shape
        position = torch.arange(self.count).expand(batch, -1)
        prefix, a, b = (p.squeeze(-1) for p in self._split(position.unsqueeze(-1)))
        out = torch.empty(batch, self.count, dtype=torch.int64)
        out[:, : self.prefix] = prefix
        first_b = self.prefix + kept
        out.scatter_(1, a.gather(1, self.kept), torch.arange(self.prefix, first_b).expand(batch, -1))
        out.scatter_(1, a.gather(1, self.merged), self.target + first_b)
        out.scatter_(1, b, torch.arange(b.shape[1]).expand(batch, -1) + first_b)
        return out

    def dropped(self) -> torch.Tensor:
        """Nothing is pruned: every token lives on in its slot."""
        return torch.zeros(self.kept.shape[0], self.count, dtype=torch.bool)


class ToMe:
    """`tome:r=8`: merge r tokens in each of the blocks."""

    keys: ClassVar[Mapping[str, str]] = {"r": "tokens merged in the block"}
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"prop": ("on", "off")}

    @staticmethod
    def check_model(vit: VitModel) -> str | None:
        """Keys are all it needs: every family with an adapter will do."""
        return None

    @staticmethod
    def default_blocks(depth: int) -> tuple[int, ...]:
        """Every block, as in the paper."""
        return tuple(range(1, depth + 1))

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """R is a whole number of tokens."""
        if value < 0 or value != int(value):
            return f"r={value:g} must be a whole number of tokens, 0 or more"
        return None

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """At most half of the patches can merge: every pair has one end in A.

        >>> ToMe.tokens_after(197, 1, "r", 8)
        189
        >>> ToMe.tokens_after(21, 1, "r", 16)
        11
        """
        return tokens - min(int(value), (tokens - prefix) // 2)

    @staticmethod
    def budget_grid(tokens: int) -> tuple[str, tuple[float, ...]]:
        """R from 0 to half the tokens."""
        return "r", tuple(float(r) for r in range(tokens // 2 + 1))

    @staticmethod
    def plan(
        tap: Tap,
        size: torch.Tensor | None,
        prefix: int,
        tokens_out: int,
        options: Mapping[str, str],
        lowering: Lowering,
    ) -> Matching:
        """Match A to B on the head-mean keys of this block.

        The similarity branch is float32 whatever the stream is: its argmax decides, and a NaN there is final.
        """
        count = tap.k.shape[2]
        metric = tap.k.to(torch.float32).mean(dim=1)[:, prefix:]  # [B, N - P, d]
        metric = metric / metric.square().sum(dim=-1, keepdim=True).sqrt().clamp_min(1e-6)
        first_a = prefix % 2  # patch i is in A iff its sequence position i + P is even
        a, b = metric[:, first_a::2], metric[:, 1 - first_a :: 2]
        best, nearest = (a @ b.transpose(1, 2)).max(dim=-1)  # [B, Na]
        order = best.topk(best.shape[1], dim=-1).indices
        merge = count - tokens_out
        merged = order[:, :merge]
        return Matching(
            prefix=prefix,
            first_a=first_a,
            count=count,
            kept=ascending(order[:, merge:]),
            merged=merged,
            target=nearest.gather(1, merged),
            lowering=lowering,
        )

    @staticmethod
    def tracks_size(options: Mapping[str, str]) -> bool:
        """On for supervised ViTs; `prop=off` for MAE weights used off the shelf (paper, section 4.2)."""
        return options.get("prop", "on") == "on"

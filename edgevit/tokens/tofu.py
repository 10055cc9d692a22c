"""ToFu: drop near-duplicates in early blocks, average them with their length kept in later ones.

Kim et al., "Token Fusion: Bridging the Gap between Token Pruning and Token Merging", WACV 2024 (arXiv:2312.01026),
section 3; written from the formulas. The matching is ToMe's. With a switch at depth d:

    blocks 1 .. d    pruned merge: the r matched tokens are dropped, their targets stay as they are
    later blocks     MLERP: y = (μ / ‖μ‖) · max over the group of ‖x_t‖,   μ = plain mean of the group

d is half the depth (6 of 12, as in the paper) unless `switch=` gives it. μ is not weighted by sizes, which is our
reading of the paper. Sizes are still counted (a dropped token counts for its target), for heads that pool over patches
and for `prop=on`, proportional attention, which the paper does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgevit.tokens.base import Bipartite
from edgevit.tokens.lowering import one_hot, take, take_rows
from edgevit.tokens.plans import Grouping, Merge
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import NORM_FLOOR
from edgevit.tokens.tome import match, similarity


@dataclass(frozen=True)
class Fusion(Grouping):
    """ToMe's groups, joined ToFu's way. pruned: drop what joins, rather than MLERP."""

    pruned: bool

    def apply(self, x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, N, C]` → `[B, N', C]`; sizes add up either way."""
        sizes = x.new_ones(x.shape[:2]) if size is None else size
        total = take(sizes, self.order, self.lowering) + self.sums(take(sizes, self.merged, self.lowering))
        return take_rows(x, self.order, self.lowering) if self.pruned else self._mlerp(x), total

    def dropped(self) -> torch.Tensor:
        """The dropped tokens, which still have a target to be restored from."""
        if not self.pruned:
            return super().dropped()
        return Grouping(self.order, self.merged[:, :0], self.target[:, :0], self.count, self.lowering).dropped()

    def _mlerp(self, x: torch.Tensor) -> torch.Tensor:
        """The mean's direction at the group's largest length; a group of one is untouched but for rounding."""
        plain = x.new_ones(x.shape[:2])
        mean, _ = Merge(self.order, self.merged, self.target, self.count, self.lowering, weight=plain).apply(x, None)
        own = take_rows(x, self.order, self.lowering)
        joining = length(take_rows(x, self.merged, self.lowering))  # [B, R]
        spread = one_hot(self.target, self.order.shape[1], torch.bool)  # [B, R, N']
        largest = torch.where(spread, joining.unsqueeze(-1), 0.0).amax(dim=1).maximum(length(own))
        direction = mean.to(torch.float32) / length(mean).unsqueeze(-1)  # opposite tokens: 0, not infinite
        return (direction * largest.unsqueeze(-1)).to(x.dtype)


def length(x: torch.Tensor) -> torch.Tensor:
    """`[B, N, C]` → `[B, N]` float32, never 0: squares of activations overflow float16."""
    return x.to(torch.float32).square().sum(dim=-1).sqrt().clamp_min(NORM_FLOOR)


class ToFu(Bipartite):
    """`tofu:r=8`: ToMe's pairs, pruned in the first half of the blocks and fused at full length in the second."""

    name: ClassVar[str] = "tofu"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"switch": (), "prop": ("off", "on")}

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """`switch` is a number of blocks."""
        return None if value.isdecimal() else f"switch={value} must be the last block that prunes, 0 or more"

    @staticmethod
    def plan(site: Site) -> Fusion:
        """ToMe's decision on this block's keys."""
        pairs = match(site, similarity(site))
        last = int(site.options.get("switch", site.depth // 2))
        return Fusion(pairs.order, pairs.merged, pairs.target, pairs.count, pairs.lowering, pruned=site.block <= last)

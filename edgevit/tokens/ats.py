"""ATS: sample tokens where the class token's attention lies; how many differ from image to image.

Fayyaz et al., "Adaptive Token Sampling for Efficient Vision Transformers", ECCV 2022 (arXiv:2111.15667), section 3;
written from the formulas.

    S_j = a_j ‖v_j‖ / Σ over patches     a: mean over heads of the class token's attention row, v: all heads' values
    c = cumulative sum of S in rising order, stretched to [0, 1]
    G points y_i = y_0 + i (1 − y_0)/(G − 1), y_0 the smallest positive c; each takes the patch with the nearest c
    the patches that were taken at least once stay

Static form: G is the number of patches of the image (as the authors evaluate); a block that leaves K patches has K
slots, and where more are taken the K with the largest score stay, the one approximation. `points=slots` takes G = K:
every patch taken has a slot then, but up to half of the slots stay dead, and outputs move further from the dense
model's at equal cost. A patch is taken iff a point lies between the midpoints to its neighbours: counted, not searched.
Slots that no point filled are *dead*: they hold the best patches that were not taken, at a size of 1e-30. Later
attention adds log(size) = −69 to their logits, which makes their share nothing; live slots have size 1 and log 0, so
this is no proportional attention. Means over patches weigh dead slots by their size. They still cost their
multiplications: a static program pays for its slots, not for its tokens. (In float16 1e-30 is 0 and its logarithm
−inf; the softmax gives an exact 0 then, because a live token is in every row.)

Rows are taken from the stream behind the attention, which is what pruning the queries inside it gives: a query's
output depends on no other query. Differences from the reference: dead slots take no part in sampling (the reference
pads a batch, and lets the padding in with score 0); the patch with the largest score always stays; no minimum of 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from edgevit.tokens.base import SHARE_OR_COUNT, Reduction, quarters
from edgevit.tokens.lowering import put, take
from edgevit.tokens.plans import Prune, with_prefix
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import class_attention

if TYPE_CHECKING:
    from edgevit.stages import VitModel

DEAD = 1e-30  # a normal number of float32, so its logarithm is finite
FLOOR = 1e-9  # against 0/0 where one patch has all the score; far below 1/G**2, so it changes no other result


@dataclass(frozen=True)
class Sample(Prune):
    """Keep the rows of `order`; those that are not `live` `[B, N']` fill their slot and lose their weight."""

    live: torch.Tensor

    def apply(self, x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One gather; sizes are 1 and `DEAD`, whatever they were."""
        rows, _ = super().apply(x, None)
        return rows, self.live.to(x.dtype).clamp_min(DEAD)

    def dropped(self) -> torch.Tensor:
        """Patches that no point took, those that fill a dead slot included."""
        return put(self.order, self.live.to(torch.float32), self.count) == 0


def significance(site: Site) -> torch.Tensor:
    """S: `[B, N - P]` float32, not yet divided by its sum."""
    values = site.tap.v[:, :, site.prefix :].to(torch.float32)
    return class_attention(site.tap, site.prefix) * values.square().sum(dim=(1, 3)).sqrt()


def taken(scores: torch.Tensor, live: torch.Tensor, points: int) -> torch.Tensor:
    """Which of the patches, in rising order of score, dead ones first, `points` take: `[B, n]`, `[B, n]` → `[B, n]`."""
    cumulative = (scores / scores.sum(dim=-1, keepdim=True).clamp_min(FLOOR)).cumsum(dim=-1)
    least = torch.where(live, cumulative, 2.0).amin(dim=-1, keepdim=True)
    stretched = (cumulative - least) / (cumulative[:, -1:] - least).clamp_min(FLOOR)  # dead ones lie below 0
    first = torch.where(stretched > 0, stretched, 1.0).amin(dim=-1, keepdim=True)
    step = ((1 - first) / max(points - 1, 1)).clamp_min(FLOOR)
    middle = (stretched[:, 1:] + stretched[:, :-1]) / 2
    below = ((middle - first) / step + 1).floor().clamp(0, points)  # points up to each midpoint
    ends = below.new_zeros((below.shape[0], 1))
    return torch.cat([below, ends + points], dim=1) > torch.cat([ends, below], dim=1)


class ATS(Reduction):
    """`ats:keep=0.8@4,7,10`: sample at most 80 % of the patches at these blocks, fewer where attention is narrow."""

    name: ClassVar[str] = "ats"
    keys: ClassVar[Mapping[str, str]] = SHARE_OR_COUNT
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"points": ("patches", "slots")}
    needs_class_token: ClassVar[bool] = True
    merges: ClassVar[bool] = False

    @classmethod
    def check_model(cls, vit: VitModel, restoring: bool) -> str | None:
        """A maximum over patches would see dead slots."""
        if vit.pooling in ("max", "avgmax"):
            return (
                f"ats leaves slots without weight among the patches, and this model takes a maximum over them "
                f"({vit.pooling}), which would count them; use tome"
            )
        return super().check_model(vit, restoring)

    @staticmethod
    def default_blocks(depth: int) -> tuple[int, ...]:
        """Few points: 4, 7 and 10 of 12 (the authors evaluate 4 to 12, which loses more at equal cost)."""
        return quarters(depth)

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """At least two points: the first and the last of the cumulative sum.

        >>> ATS.tokens_after(197, 1, "keep", 0.7), ATS.tokens_after(12, 1, "keep", 0.01)
        (139, 3)
        """
        return max(Reduction.tokens_after(tokens, prefix, key, value), min(prefix + 2, tokens))

    @classmethod
    def tracks_size(cls, options: Mapping[str, str]) -> bool:
        """Sizes carry which slots are dead."""
        return True

    @staticmethod
    def plan(site: Site) -> Sample:
        """Sample `tokens_out` - P points from this block's scores."""
        scores, slots = significance(site), site.tokens_out - site.prefix
        points = slots if site.options.get("points") == "slots" else site.grid[0] * site.grid[1]
        if site.size is not None:
            scores = torch.where(site.size[:, site.prefix :] > 0.5, scores, -1.0)
        falling, rising = scores.neg().topk(scores.shape[1], dim=-1)
        chosen = taken(falling.neg().clamp_min(0), falling <= 0, points)
        ranks = torch.arange(scores.shape[1], device=scores.device)
        best = (chosen.to(torch.float32) * scores.shape[1] + ranks).topk(slots, dim=-1)  # taken first, then by score
        order = with_prefix(site.prefix, take(rising, best.indices, site.lowering))
        filled = best.values >= scores.shape[1]
        live_prefix = filled.new_ones((filled.shape[0], site.prefix))
        nothing = order.new_zeros((order.shape[0], 0))
        live = torch.cat([live_prefix, filled], dim=1)
        return Sample(order, nothing, nothing, site.x.shape[1], site.lowering, live)

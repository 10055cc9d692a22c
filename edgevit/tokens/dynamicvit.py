"""DynamicViT: keep the patches that a trained predictor in front of a block scores best.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", NeurIPS 2021
(arXiv:2106.02034), section 3; the formulas are in `edgevit.trained.dynamicvit`.

    in front of the k-th point: s = predictor_k(patches); the int(N0 · keep_1 · ... · keep_k) patches with the largest s
    stay, in that order

N0 is the number of patches of the image and `keep` the share that stays at each point, so that one keep=0.7 gives the
published 137, 96 and 67 of 196. `@4,7,10` is in front of these blocks (the paper's 3, 6, 9 count from 0). Fewer points
than predictors leave the last predictors unused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from edgevit.tokens.base import SHARE_OR_COUNT, ByShare
from edgevit.tokens.plans import Prune, prune, with_prefix
from edgevit.tokens.protocol import Placement, Site
from edgevit.trained.dynamicvit import scores

if TYPE_CHECKING:
    from torch import nn

    from edgevit.stages import VitModel
    from edgevit.tokens.counting import Counts


class DynamicViT(ByShare):
    """`dynamicvit:keep=0.7@4,7,10`: keep 70 % in front of blocks 4, 7 and 10, of what is there, each time."""

    name: ClassVar[str] = "dynamicvit"
    keys: ClassVar[Mapping[str, str]] = {"keep": SHARE_OR_COUNT["keep"]}
    placement: ClassVar[Placement] = "front"
    merges: ClassVar[bool] = False
    weights: ClassVar[str | None] = "dynamicvit"
    no_search: ClassVar[str | None] = "has predictors that were trained for their places; give keep= or flops="

    @classmethod
    def check_counts(cls, counts: Counts, vit: VitModel) -> str | None:
        """A predictor for each point."""
        from edgevit.tokens.counting import scheduled_blocks

        predictors = len(cast("nn.ModuleList", vit.trained["dynamicvit"]))
        points = scheduled_blocks(counts.schedule, len(vit.blocks))
        if len(points) <= predictors:
            return None
        return f"this checkpoint has {predictors} predictors, and the schedule {len(points)} points; name fewer with @"

    @classmethod
    def tokens_at(cls, entered: int, tokens: int, prefix: int, key: str, amounts: Sequence[float]) -> int:
        """A share of the image's patches, truncated as the reference does it; at least one.

        >>> [DynamicViT.tokens_at(197, 197, 1, "keep", [0.7] * k) for k in (1, 2, 3)]
        [138, 97, 68]
        """
        share = math.prod(value**times for value, times in Counter(amounts).items())  # powers, as in the reference
        return min(tokens, prefix + max(1, int((entered - prefix) * share)))

    @staticmethod
    def plan(site: Site) -> Prune:
        """The best patches first, by the predictor of this point."""
        predictor = cast("nn.ModuleList", site.trained)[site.ordinal]
        order = scores(predictor, site.x[:, site.prefix :]).topk(site.tokens_out - site.prefix, dim=-1).indices
        return prune(with_prefix(site.prefix, order), site.x.shape[1], site.lowering)

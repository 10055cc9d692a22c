"""ToMeCIS: ToMe whose averages are weighted by importance for the class token.

Seol, Roh, Chung, "Token Merging with Class Importance Score", IECON 2023 (doi:10.1109/IECON51785.2023.10312420).
The pairs are ToMe's; what joins is averaged by class importance instead of by size:

    c_j = mean over heads of A[h, cls, j] · ‖V[h, j]‖          y = Σ c x / Σ c,   s' = Σ s,   later logits + log s'

This is our reading: the public text gives the ingredients (ToMe's matching, a weighted mean, the class row of the
attention, the values) and not the formula. A includes log s from the second reducing block on, so sizes count in c.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from edgevit.tokens.base import Bipartite
from edgevit.tokens.plans import Merge
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import class_attention_heads
from edgevit.tokens.tome import match, similarity

WEIGHT_FLOOR = 1e-6  # an average patch has about 1 / N; a group of patches that nobody attends to is a plain mean


def class_importance(site: Site) -> torch.Tensor:
    """The c of all tokens: `[B, N]` float32."""
    lengths = site.tap.v.to(torch.float32).square().sum(dim=-1).sqrt()  # [B, H, N]
    return (class_attention_heads(site.tap) * lengths).mean(dim=1).clamp_min(WEIGHT_FLOOR)


class ToMeCIS(Bipartite):
    """`tomecis:r=8`: ToMe's pairs, averaged by what the class token takes from each."""

    name: ClassVar[str] = "tomecis"
    needs_class_token: ClassVar[bool] = True

    @staticmethod
    def plan(site: Site) -> Merge:
        """ToMe's match with other weights."""
        return replace(match(site, similarity(site)), weight=class_importance(site))

"""DTEM: ToMe's matching on an embedding that was trained for it, by merging.

Lee and Hong, "Learning to Merge Tokens via Decoupled Embedding for Efficient Vision Transformers", NeurIPS 2024
(arXiv:2412.10569), section 3; the formulas are in `edgevit.trained.dtem`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

from edgevit.tokens.base import Bipartite
from edgevit.tokens.plans import Merge
from edgevit.tokens.protocol import Site
from edgevit.tokens.tome import ToMe
from edgevit.trained.dtem import decoupled, embed

if TYPE_CHECKING:
    from torch import nn


class DTEM(Bipartite):
    """`dtem:r=8`: merge r tokens in each of the blocks."""

    name: ClassVar[str] = "dtem"
    weights: ClassVar[str | None] = "dtem"

    @staticmethod
    def plan(site: Site) -> Merge:
        """Match A to B on this block's embedding of what its keys are made from."""
        embedding = cast("nn.ModuleList", site.trained)[site.block - 1]
        assert site.tap.normed is not None  # the blocks of timm's ViT, which this was trained on, give it
        return ToMe.plan(replace(site, tap=decoupled(site.tap, embed(embedding, site.tap.normed))))

"""FasterVLM: return the patches that the class token attends to, for a vision-language model.

Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster", 2024
(arXiv:2412.01818), section 3; written from the formula.

    a_j = mean over heads of softmax(q_cls · kᵀ · scale)_j    in the last block that is run
    return the K patches with the largest a, in raster order

LLaVA's encoder is read with `layer=-2`, and then the attention is that of the last block but one, as in the paper.
Prefix tokens are neither scored nor returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from edgevit.tokens.scores import class_attention
from edgevit.tokens.selector import OutputSelector

if TYPE_CHECKING:
    from edgevit.stages import Tap
    from edgevit.tokens.protocol import Site


class FasterVLM(OutputSelector):
    """`fastervlm:tokens=128,layer=-2`: the 128 patches with the most class attention."""

    name: ClassVar[str] = "fastervlm"
    needs_class_token: ClassVar[bool] = True

    @staticmethod
    def scores(taps: Sequence[Tap], tokens: torch.Tensor, site: Site) -> torch.Tensor:
        """The class row of the one block read: `[B, N - P]`."""
        return class_attention(taps[0], site.prefix)

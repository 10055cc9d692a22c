"""VTC-CLS: return the patches that the class token attends to over several layers, for a vision-language model.

Wang et al., "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", 2024 (arXiv:2412.05819); written
from the formula.

    a_j = Σ over blocks l from `start` to the last but one of  mean over heads of softmax(q_cls · kᵀ · scale)_j
    return the K patches with the largest a, in raster order

The last block's attention is left out even where that block is run (`layer=-1`): it is the one with artefacts. With
`layer=-3` or less the sum ends at the last block that is run. `start` counts blocks from 1; the paper tunes it per
model, the default here is the first block of the second half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from edgevit.tokens.scores import class_attention
from edgevit.tokens.selector import OutputSelector, block_option, last_block, whole_number

if TYPE_CHECKING:
    from edgevit.stages import Tap
    from edgevit.tokens.protocol import Site


class VtcCls(OutputSelector):
    """`vtccls:tokens=128,start=14,layer=-2`: class attention summed over blocks 14 to 23 of 24."""

    name: ClassVar[str] = "vtccls"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"layer": (), "start": ()}
    needs_class_token: ClassVar[bool] = True

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """`start` is a block."""
        return whole_number(name, value) if name == "start" else OutputSelector.check_option(name, value)

    @staticmethod
    def reads(depth: int, options: Mapping[str, str]) -> tuple[int, ...]:
        """Blocks `start` to the last but one.

        >>> VtcCls.reads(6, {}), VtcCls.reads(6, {"layer": "-3", "start": "4"})
        ((4, 5), (4,))
        """
        last = max(1, min(depth - 1, last_block(depth, options)))
        return tuple(range(block_option("start", min(depth // 2 + 1, last), last, options), last + 1))

    @staticmethod
    def scores(taps: Sequence[Tap], tokens: torch.Tensor, site: Site) -> torch.Tensor:
        """Class rows of all blocks read, summed: `[B, N - P]`."""
        return torch.stack([class_attention(tap, site.prefix) for tap in taps]).sum(dim=0)

"""HiPrune: return the object's patches, their neighbours, and the globally attended ones, for a vision-language model.

Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models", 2025
(arXiv:2508.00553); written from the formulas.

    s_l,j = attention that patch j receives in block l, mean over heads and all queries
    anchors    the n = round(alpha · K / 5) patches with the largest s in a middle block, `object`
    buffers    the patches left and right of an anchor in the sequence, and one grid row above and below it
    registers  the patches with the largest s in the last block that is run, until there are K
    returned in raster order

Left and right are ±1 in the sequence, clamped to its ends and not to the row, as in the reference. No class token is
needed; two blocks compute their attention explicitly. `alpha` defaults to 0.1 and `object` to 3/8 of the depth: block
9 of CLIP-L's 24 (for Qwen2.5-VL the paper takes 16). Where rounding makes anchors and buffers more than K, anchors go
first and the buffers with the largest s of the last block follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from edgevit.tokens.lowering import ascending, one_hot
from edgevit.tokens.scores import received_attention
from edgevit.tokens.selector import OutputSelector, block_option, last_block, share, whole_number

if TYPE_CHECKING:
    from edgevit.stages import Tap
    from edgevit.tokens.protocol import Site

RANK_APART = 2.0
"""Added once for a buffer and twice for an anchor. Received attention is at most 1, so the kinds never mix."""


class HiPrune(OutputSelector):
    """`hiprune:tokens=192,alpha=0.1,object=9,layer=-2`: anchors of block 9, their neighbours, then the last block's."""

    name: ClassVar[str] = "hiprune"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"layer": (), "alpha": (), "object": ()}
    probabilities: ClassVar[bool] = True

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """`alpha` is a share, `object` a block."""
        if name == "alpha":
            return share(name, value)
        return whole_number(name, value) if name == "object" else OutputSelector.check_option(name, value)

    @staticmethod
    def reads(depth: int, options: Mapping[str, str]) -> tuple[int, ...]:
        """The object block and the last one run; one block when they are the same.

        >>> HiPrune.reads(24, {"layer": "-2"}), HiPrune.reads(2, {"object": "2"})
        ((9, 23), (2,))
        """
        last = last_block(depth, options)
        middle = block_option("object", min(max(1, round(depth * 3 / 8)), last), last, options)
        return tuple(sorted({middle, last}))

    @classmethod
    def choose(cls, taps: Sequence[Tap], tokens: torch.Tensor, site: Site) -> torch.Tensor:
        """Union, then fill: one TopK over the last block's scores with a bonus for anchors and buffers."""
        middle, deep = (received_attention(tap)[:, site.prefix :] for tap in (taps[0], taps[-1]))
        count = deep.shape[1]
        n = round(float(site.options.get("alpha", "0.1")) * site.tokens_out / 5)
        if n:
            anchors = middle.topk(min(n, count), dim=-1).indices
            width = site.grid[1]
            near = torch.cat([anchors + step for step in (-1, 1, -width, width)], dim=1).clamp(0, count - 1)
            for index in (anchors, torch.cat([anchors, near], dim=1)):
                deep = deep + RANK_APART * one_hot(index, count, deep.dtype).amax(dim=1)
        return ascending(deep.topk(site.tokens_out, dim=-1).indices) + site.prefix

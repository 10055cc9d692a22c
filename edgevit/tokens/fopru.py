"""FoPru: return the patches, or the rows of patches, that attention falls on, for a vision-language model.

Jiang et al., "FoPru: Focal Pruning for Efficient Large Vision-Language Models", 2024 (arXiv:2411.14164); written from
the text.

    s_j = attention that patch j receives, mean over heads and all queries, in the last block that is run
    strategy=rank   return the K patches with the largest s
    strategy=row    sum s over each row of the grid; return whole rows, the best K / width of them
    either way in raster order

No class token is needed; the attention of the one block is computed explicitly. With `strategy=row` `tokens` is a
multiple of the grid's width, and `keep` rounds up to whole rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from edgevit.errors import ScheduleError
from edgevit.tokens.base import kept
from edgevit.tokens.lowering import ascending
from edgevit.tokens.scores import received_attention
from edgevit.tokens.selector import OutputSelector, best

if TYPE_CHECKING:
    from edgevit.stages import Tap
    from edgevit.tokens.protocol import Site


class FoPru(OutputSelector):
    """`fopru:keep=0.25,strategy=row,layer=-2`: the rows of the grid that hold the most attention."""

    name: ClassVar[str] = "fopru"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"layer": (), "strategy": ("rank", "row")}
    probabilities: ClassVar[bool] = True

    @classmethod
    def returned(cls, key: str, value: float, grid: tuple[int, int], options: Mapping[str, str]) -> int:
        """Whole rows where rows are asked for."""
        if options.get("strategy") != "row":
            return super().returned(key, value, grid, options)
        height, width = grid
        if key == "keep":
            return kept(height, value) * width
        if value % width or value > height * width:
            raise ScheduleError(
                f"fopru: strategy=row returns whole rows of {width} patches, so tokens={value:g} must be a multiple of "
                f"{width}, at most {height * width}"
            )
        return int(value)

    @classmethod
    def choose(cls, taps: Sequence[Tap], tokens: torch.Tensor, site: Site) -> torch.Tensor:
        """The best patches, or all patches of the best rows."""
        received = received_attention(taps[0])[:, site.prefix :]
        if site.options.get("strategy") != "row":
            return best(received, site)
        height, width = site.grid
        rows = received.reshape(-1, height, width).sum(dim=-1).topk(site.tokens_out // width, dim=-1).indices
        patches = ascending(rows).unsqueeze(-1) * width + torch.arange(width, device=rows.device)  # [B, R, width]
        return patches.reshape(rows.shape[0], site.tokens_out) + site.prefix

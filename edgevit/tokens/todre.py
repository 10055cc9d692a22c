"""ToDRE, first stage: return the most different output tokens, for a vision-language model.

Li, Yang and Lu, "ToDRE: Visual Token Pruning via Diversity and Task Awareness for Efficient Large Vision-Language
Models", 2025 (arXiv:2505.18757 v1), greedy k-centre; written from the description.

    d(i, j) = 1 − cos(x_i, x_j)                      over the patches' output tokens x (behind `layer`, before any norm)
    first: the patch with the least mean cosine to all patches; then, K − 1 times, the patch whose
    nearest chosen one is farthest:  argmax_i  min over chosen c of d(i, c)
    returned in raster order

The published text leaves the first token open; the one above depends on nothing but the set of tokens. The second stage
of ToDRE works inside the language model and is not part of this. The loop is unrolled into the program, a few operators
a token, so K is at most 64. No attention and no class token is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from edgevit.errors import ScheduleError
from edgevit.tokens.lowering import ascending, take_rows
from edgevit.tokens.scores import unit
from edgevit.tokens.selector import OutputSelector

if TYPE_CHECKING:
    from edgevit.stages import Tap
    from edgevit.tokens.protocol import Site

MOST = 64
CHOSEN = -1.0  # below every distance, which rounding may bring to -1e-7


class ToDre(OutputSelector):
    """`todre:tokens=64,layer=-2`: 64 tokens, each as far as possible from the ones before."""

    name: ClassVar[str] = "todre"

    @classmethod
    def returned(cls, key: str, value: float, grid: tuple[int, int], options: Mapping[str, str]) -> int:
        """At most 64."""
        count = super().returned(key, value, grid, options)
        if count > MOST:
            raise ScheduleError(
                f"todre: {count} tokens are more than the {MOST} whose choice can be unrolled into a program; give "
                f"tokens={MOST} or less, or use hiprune"
            )
        return count

    @classmethod
    def choose(cls, taps: Sequence[Tap], tokens: torch.Tensor, site: Site) -> torch.Tensor:
        """Farthest-first, one argmax a token: `[B, K]`."""
        patches = unit(tokens[:, site.prefix :])
        places = torch.arange(patches.shape[1], device=patches.device)
        scores = -(patches @ patches.sum(dim=1, keepdim=True).transpose(1, 2)).squeeze(-1)  # [B, N - P]
        distance = torch.full_like(scores, 2.0)
        chosen: list[torch.Tensor] = []
        for _ in range(site.tokens_out):
            index = scores.max(dim=-1, keepdim=True).indices  # [B, 1]
            chosen.append(index)
            centre = take_rows(patches, index, site.lowering)
            distance = torch.minimum(distance, 1.0 - (patches @ centre.transpose(1, 2)).squeeze(-1))
            distance = torch.where(places == index, CHOSEN, distance)
            scores = distance
        return ascending(torch.cat(chosen, dim=1)) + site.prefix

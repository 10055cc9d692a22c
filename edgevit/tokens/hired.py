"""HiRED: return tokens of a picture's parts, a budget for each by class attention, for a vision-language model.

Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models",
AAAI 2025 (arXiv:2408.10945); written from the formulas.

    parts: the full picture, then its sub-images row by row, as LLaVA-NeXT cuts them
    full picture      b_0 = floor(alpha · K)
    sub-image s       b_s = floor(h_s / Σ h · (K − b_0)),  h_s = how many of the (1 − alpha) · (N − P) patches of the
                      full picture with the most class attention in block 1 lie in the region of s
    each part returns its b patches with the most class attention in the last block that is run

`parts=2x2` (down x across): the batch is pictures · 5 images, in the order above, and the output `[pictures, K, C]`,
part after part, each in raster order. `tokens` is K of a picture, `keep` its share of all parts' patches (the paper:
0.2). Without `parts` an image is a picture of its own and gets the whole budget. alpha defaults to 0.5.

The reference returns as many tokens as the floors leave, and clamps b_s to a part's patches. Here K is exact: what
floors and clamps leave over goes to the best-attended remaining patches of any part. Rows of the batch depend on one
another within a picture, never across pictures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from edgevit.tokens.lowering import ascending, put
from edgevit.tokens.scores import class_attention
from edgevit.tokens.selector import OutputSelector, best, last_block, share

if TYPE_CHECKING:
    from edgevit.stages import Tap
    from edgevit.tokens.protocol import Site

WITHIN_BUDGET = 2.0
"""Added to a patch that its part's budget holds. Attention is at most 1, so those go first; all of them fit in K."""


class HiRed(OutputSelector):
    """`hired:tokens=576,parts=2x2,layer=-2`: 576 tokens of a picture and its four sub-images."""

    name: ClassVar[str] = "hired"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"layer": (), "parts": (), "alpha": ()}
    needs_class_token: ClassVar[bool] = True

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """`parts` is the layout of the sub-images, `alpha` a share."""
        if name == "alpha":
            return share(name, value)
        if name == "parts":
            good = re.fullmatch("[1-9][0-9]?x[1-9][0-9]?", value)
            return None if good else f"parts={value} must be the sub-images down x across, for example 2x2"
        return OutputSelector.check_option(name, value)

    @staticmethod
    def images(options: Mapping[str, str]) -> int:
        """The full picture and its sub-images.

        >>> HiRed.images({}), HiRed.images({"parts": "2x3"})
        (1, 7)
        """
        layout = layout_of(options)
        return 1 + layout[0] * layout[1] if layout else 1

    @staticmethod
    def reads(depth: int, options: Mapping[str, str]) -> tuple[int, ...]:
        """Block 1 for the budgets, the last one run for the tokens."""
        last = last_block(depth, options)
        return tuple(sorted({1, last})) if layout_of(options) else (last,)

    @classmethod
    def choose(cls, taps: Sequence[Tap], tokens: torch.Tensor, site: Site) -> torch.Tensor:
        """`[pictures, K]` int64, rising: places in the tokens of all parts of a picture, laid end to end."""
        deep = class_attention(taps[-1], site.prefix)  # [pictures * G, N - P]
        layout = layout_of(site.options)
        if layout is None:
            return best(deep, site)
        parts, count = cls.images(site.options), deep.shape[1]
        pictures = deep.shape[0] // parts
        first = class_attention(taps[0], site.prefix).reshape(pictures, parts, count)[:, 0]
        budget = budgets(first, layout, site).reshape(-1, 1)  # [pictures * G, 1]
        places = torch.arange(count, device=deep.device).expand(deep.shape[0], -1)
        rank = put(deep.topk(count, dim=-1).indices, places, count)
        worth = deep + WITHIN_BUDGET * (rank < budget).to(deep.dtype)
        never = worth.new_full((deep.shape[0], site.prefix), -1.0)  # prefix tokens: no attention is below 0
        whole = torch.cat([never, worth], dim=1).reshape(pictures, parts * (site.prefix + count))
        return ascending(whole.topk(site.tokens_out, dim=-1).indices)


def layout_of(options: Mapping[str, str]) -> tuple[int, int] | None:
    """Sub-images (down, across) of `parts=`, or None."""
    if "parts" not in options:
        return None
    down, across = options["parts"].split("x")
    return int(down), int(across)


def budgets(first: torch.Tensor, layout: tuple[int, int], site: Site) -> torch.Tensor:
    """Tokens of each part: class attention of the full picture in block 1 `[pictures, N - P]` → `[pictures, G]`."""
    count, alpha = first.shape[1], float(site.options.get("alpha", "0.5"))
    whole = int(round(alpha * site.tokens_out, 9))
    marked = int(round((1 - alpha) * count, 9))
    order = first.topk(count, dim=-1).indices[:, :marked]
    hits = put(order, torch.ones(order.shape), count) @ regions(layout, site.grid)  # [pictures, S]
    # whole numbers below 2**24; the half keeps an exact quotient above its floor whichever way a division rounds
    part = torch.floor((hits * (site.tokens_out - whole) + 0.5) / max(marked, 1))
    return torch.cat([torch.full_like(part[:, :1], whole), part], dim=1)


def regions(layout: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """`[N - P, S]` of 0 and 1: the sub-image in which each patch of the full picture lies."""
    (down, across), (height, width) = layout, grid
    home = [r * down // height * across + c * across // width for r in range(height) for c in range(width)]
    return (torch.tensor(home).unsqueeze(-1) == torch.arange(down * across)).to(torch.float32)

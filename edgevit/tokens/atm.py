"""ATM, static: ToMe that stops matching large tokens with large ones in the last blocks, at calibrated counts.

Lee, Choi, "Lossless Token Merging Even Without Fine-Tuning in Vision Transformers", ECAI 2025 (arXiv:2505.15160);
written from the formulas. A merge of tokens of sizes n_i, n_j costs n_i n_j / (n_i + n_j) · (1 − cos). So:

    blocks 1 .. l_s   ToMe's matching, even positions to odd ones
    later blocks      A = the smaller half of the patches, B = the larger half, by size; A merges into B alone

The paper merges every pair with cos > θ_l = max(α − (e^{β (l − 1)} − 1), θ_min), one count for a whole batch. Shapes
are static here: the counts are the schedule's, one per block. `thresholds` and `counts_from_similarity` turn
similarities measured on calibration images into such counts, which is approximate by design.

l_s is two thirds of the depth unless `switch=` gives it (the paper's values of l_s, α, β and θ_min are not public
knowledge to us). Patches of equal size are split by position as ToMe does, so that the split does not depend on how a
runtime orders ties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch

from edgevit.tokens.base import Bipartite
from edgevit.tokens.lowering import ascending, take_rows
from edgevit.tokens.matching import bipartite
from edgevit.tokens.plans import Merge
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import halves, key_metric
from edgevit.tokens.tome import match, similarity


def thresholds(depth: int, alpha: float, beta: float, least: float) -> tuple[float, ...]:
    """θ_l of blocks 1 to `depth`: falling from `alpha`, as early errors add up, and never under `least`.

    >>> [round(t, 3) for t in thresholds(4, 0.9, 0.1, 0.6)]
    [0.9, 0.795, 0.679, 0.6]
    """
    return tuple(max(alpha - math.expm1(beta * block), least) for block in range(depth))


def counts_from_similarity(best: torch.Tensor, theta: float, quantile: float = 0.25) -> int:
    """Tokens to merge in one block: `quantile` of the images have at most this many above the threshold.

    best: `[images, Na]`, from `best_match`. 0.25 is cautious (three images of four have more to merge), 0.5 the median.

    >>> counts_from_similarity(torch.tensor([[0.9, 0.9, 0.1], [0.9, 0.1, 0.1], [0.9, 0.9, 0.9]]), 0.5, quantile=0.5)
    2
    """
    counts = sorted((best > theta).sum(dim=1).tolist())
    return int(counts[math.floor(quantile * (len(counts) - 1))])


def best_match(site: Site) -> torch.Tensor:
    """Cosine of each patch that may merge with its best target, which the thresholds judge: `[B, Na]`."""
    if _by_size(site):
        return _halves(site)[2].amax(dim=-1)
    metric = key_metric(site.tap, site.prefix)
    first_a, first_b = halves(site.prefix)
    return (metric[:, first_a::2] @ metric[:, first_b::2].transpose(1, 2)).amax(dim=-1)


class ATM(Bipartite):
    """`atm:r=16/12/8@3,6,9`: merge as many tokens as calibration found alike, small ones first where it is late."""

    name: ClassVar[str] = "atm"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"switch": (), **Bipartite.options}

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """`switch` is a number of blocks."""
        return None if value.isdecimal() else f"switch={value} must be the last block that ignores sizes, 0 or more"

    @staticmethod
    def plan(site: Site) -> Merge:
        """Match by position or by size."""
        if not _by_size(site):
            return match(site, similarity(site))
        small, large, cosines = _halves(site)
        return bipartite(site, small + site.prefix, large + site.prefix, cosines)


def _by_size(site: Site) -> bool:
    return site.size is not None and site.block > int(site.options.get("switch", site.depth * 2 // 3))


def _halves(site: Site) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The smaller patches `[B, T // 2]`, the larger ones, both by position, and their cosines."""
    assert site.size is not None
    sizes = site.size[:, site.prefix :].to(torch.float32)
    count = sizes.shape[1]
    position = torch.arange(count, device=sizes.device)
    # whole numbers below 2**24: sizes first, then ToMe's B (odd in the sequence) before A, then the earlier patch
    key = sizes * (2 * count) + (position + site.prefix) % 2 * count - position
    ranked = key.topk(count, dim=-1).indices
    small, large = ascending(ranked[:, count - count // 2 :]), ascending(ranked[:, : count - count // 2])
    metric = key_metric(site.tap, site.prefix)
    a, b = (take_rows(metric, index, site.lowering) for index in (small, large))
    return small, large, a @ b.transpose(1, 2)

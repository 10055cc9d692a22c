"""PiToMe: merge the tokens that have many alike, leave the rare ones alone.

Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024 (arXiv:2405.16148),
section 3; written from the formulas. T patches, sim = cosine of their head-mean keys:

    E_i = 1/T Σ_j g(sim_ij − m_l)         energy, j = i included;  g(z) = z for z > 0, else e^z − 1
    m_l = m − m · l / L                   margin, l = 0 .. L − 1 (m = 0.75 for DeiT and MAE, 0.9 for AugReg weights)
    r = ⌊T − T · ratio⌋

Patches are ordered by falling energy and merge in one of two ways, each taking the size-weighted mean:

    bsm      A = even ranks, B = odd ranks of all T; the r best-matched of A join their B, as in ToMe
    pitome   A = even ranks, B = odd ranks of the first 2r; all of A join their nearest B; low energy is protected

The first half of the blocks (rounded up) uses bsm and the second pitome, as the released DeiT models do;
`first=pitome` turns the halves around, as for MAE. Order behind the block: prefix, untouched patches by energy, B.

Proportional attention is off by default, as in the released models, where sizes weight the mean alone; `prop=on`
compares on equal terms with ToMe on supervised weights. All prefix tokens are protected (the reference: the class
token). The paper's Gaussian variant of the energy is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F

from edgevit.tokens.base import Bipartite
from edgevit.tokens.lowering import take_rows
from edgevit.tokens.matching import bipartite
from edgevit.tokens.plans import Merge, with_prefix
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import key_metric

MARGINS = ("0.75", "0.9")


def margin(site: Site) -> float:
    """m_l of this block, falling from m at the first block towards 0."""
    largest = float(site.options.get("margin", MARGINS[0]))
    return largest - largest * (site.block - 1) / site.depth


def energy(metric: torch.Tensor, margin: float) -> torch.Tensor:
    """Unit keys `[B, T, d]` → `[B, T]`: how many others are alike."""
    return F.elu(metric @ metric.transpose(1, 2) - margin).mean(dim=-1)


def matches_all(site: Site) -> bool:
    """Whether this block uses bsm."""
    early = site.block <= math.ceil(site.depth / 2)
    return early == (site.options.get("first", "bsm") == "bsm")


class PiToMe(Bipartite):
    """`pitome:ratio=0.925`: in each block a constant share of the patches stays."""

    name: ClassVar[str] = "pitome"
    keys: ClassVar[Mapping[str, str]] = {
        "ratio": "share of the patches that stay; floor(T - T * ratio) of T go, at most half",
        **Bipartite.keys,
    }
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "margin": MARGINS,
        "first": ("bsm", "pitome"),
        "prop": ("off", "on"),
    }

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """`ratio` is a share."""
        if key == "ratio" and not 0 < value <= 1:
            return f"ratio={value:g} must be above 0 and at most 1 (0.925 keeps 92.5 %)"
        return Bipartite.check_amount(key, value)

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """`ratio` in the paper's own floating-point expression: its rounding decides at whole numbers.

        >>> PiToMe.tokens_after(197, 1, "ratio", 0.925), PiToMe.tokens_after(11, 1, "ratio", 0.9)
        (183, 10)
        """
        if key != "ratio":
            return Bipartite.tokens_after(tokens, prefix, key, value)
        patches = tokens - prefix
        return tokens - min(math.floor(patches - patches * value), patches // 2)

    @staticmethod
    def budget_grid(tokens: int) -> tuple[str, tuple[float, ...]]:
        """Ratios in steps of a thousandth, down to a half."""
        return "ratio", tuple(k / 1000 for k in range(1000, 499, -1))

    @staticmethod
    def plan(site: Site) -> Merge:
        """Order the patches by energy, then match inside the order."""
        metric = key_metric(site.tap, site.prefix)
        score = energy(metric, margin(site))
        ranked = score.topk(score.shape[1], dim=-1).indices
        if matches_all(site):
            a, b = ranked[:, 0::2], ranked[:, 1::2]
            return bipartite(site, a + site.prefix, b + site.prefix, _similarity(metric, a, b, site))
        return _protecting(site, metric, ranked)


def _similarity(metric: torch.Tensor, a: torch.Tensor, b: torch.Tensor, site: Site) -> torch.Tensor:
    """Cosines of two sets of patches: `[B, Na, Nb]`."""
    return take_rows(metric, a, site.lowering) @ take_rows(metric, b, site.lowering).transpose(1, 2)


def _protecting(site: Site, metric: torch.Tensor, ranked: torch.Tensor) -> Merge:
    """Mode pitome: the first 2r patches of `ranked` `[B, T]` halve, the others stay."""
    count = site.tap.k.shape[2]
    pairs = 2 * (count - site.tokens_out)
    a, b, kept = ranked[:, 0:pairs:2], ranked[:, 1:pairs:2], ranked[:, pairs:]
    nearest = _similarity(metric, a, b, site).argmax(dim=-1)
    return Merge(
        order=with_prefix(site.prefix, torch.cat([kept, b], dim=1)),
        merged=a + site.prefix,
        target=nearest + (site.prefix + kept.shape[1]),
        count=count,
        lowering=site.lowering,
    )

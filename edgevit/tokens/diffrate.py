"""DiffRate: prune the least attended patches, then merge the next ones into the patches that stay.

Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV 2023
(arXiv:2305.17997), section 3; written from the formulas. In block l, mid-block, with N tokens:

    1. order the patches by the class token's attention (mean over heads, sizes in the logits)
    2. prune: the first p_l tokens go on (prefix included; nothing happens where p_l >= N)
    3. merge: each of the tokens behind the first m_l joins the one of those m_l whose features x are nearest (cosine)
    y = plain mean of the group,   s' = s + Σ s_i cos_i over what joined,   later logits + log s'

The rates p, m were found by training with frozen weights and are data. Ways to give them here:

    diffrate:m=176/88,p=190/99@3,9     tokens left behind each block, and those left before its merge (section 3.3)
    diffrate:keep=0.7@4,7,10           a share of the patches stays; `prune=` says which share of the rest is pruned
    diffrate:r=8,prune=0.5             the same, by the number removed (0.5 is the default; 0 merges all, 1 prunes all)

Without `@` the first two blocks are left alone: the released schedules take nothing in the first and little in the
second. s' is kept above 0.001, as cosines may be negative. All prefix tokens are protected and no patch merges into
one (the reference: the class token). Order behind the block: prefix, patches by attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgevit.tokens.base import Reduction
from edgevit.tokens.lowering import take_rows
from edgevit.tokens.plans import Merge, Prune, prune, with_prefix
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import class_attention, unit

SIZE_FLOOR = 1e-3


@dataclass(frozen=True)
class Absorb(Merge):
    """A merge whose sizes stay positive."""

    def apply(self, x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, N, C]` → `[B, N', C]`."""
        rows, sizes = super().apply(x, size)
        return rows, sizes.clamp_min(SIZE_FLOOR)


def left_after_pruning(site: Site) -> int:
    """p_l, between the tokens that enter and those that leave; prefix included."""
    count = site.x.shape[1]
    if "p" in site.options:
        return min(int(site.options["p"].split("/")[site.ordinal]), count)
    share = float(site.options.get("prune", "0.5"))
    return count - math.floor(share * (count - site.tokens_out) + 0.5)


class DiffRate(Reduction):
    """`diffrate:keep=0.7@4,7,10`: 70 % of the patches stay; half of the others are pruned, half merged."""

    name: ClassVar[str] = "diffrate"
    keys: ClassVar[Mapping[str, str]] = {**Reduction.keys, "m": "tokens left behind the block, prefix included"}
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"prune": (), "p": (), "prop": ("on", "off")}
    needs_class_token: ClassVar[bool] = True
    merges: ClassVar[bool] = False

    @staticmethod
    def default_blocks(depth: int) -> tuple[int, ...]:
        """All but the first two, where the class token's attention says little yet.

        >>> DiffRate.default_blocks(5)
        (3, 4, 5)
        """
        return tuple(range(min(3, depth), depth + 1))

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """`m` is a number of tokens."""
        if key == "m" and (value < 1 or value != int(value)):
            return f"m={value:g} must be a whole number of tokens, 1 or more"
        return Reduction.check_amount(key, value)

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """`p` is a list of numbers of tokens, `prune` a share."""
        if name == "p":
            whole = all(entry.isdecimal() and int(entry) > 0 for entry in value.split("/"))
            return None if whole else f"p={value} must be whole numbers of tokens, one per block, such as p=190/99"
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        return None if 0 <= share <= 1 else f"prune={value} must be between 0 (merge all) and 1 (prune all)"

    @staticmethod
    def check_together(key: str, amounts: Sequence[float], options: Mapping[str, str]) -> str | None:
        """`p` comes with `m`, entry by entry."""
        if "p" not in options:
            return None
        before = [int(entry) for entry in options["p"].split("/")]
        if key != "m":
            return f"p= goes with m=; with {key}= give prune= instead"
        if "prune" in options:
            return "p= says how many are pruned, and so does prune=; give one"
        if len(before) != len(amounts):
            return f"p= has {len(before)} entries and m= {len(amounts)}; give one of each per block"
        wrong = [(p, m) for p, m in zip(before, amounts, strict=True) if p < m]
        return f"p={wrong[0][0]} is less than m={wrong[0][1]:g}, which is what its merge leaves" if wrong else None

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """At least one patch stays, for the others to merge into.

        >>> DiffRate.tokens_after(197, 1, "m", 176), DiffRate.tokens_after(56, 1, "m", 197)
        (176, 56)
        """
        if key == "m":
            return min(tokens, max(int(value), prefix + 1))
        return Reduction.tokens_after(tokens, prefix, key, value)

    @staticmethod
    def plan(site: Site) -> Absorb | Prune:
        """Order by attention, cut, and give the tail to its nearest."""
        attention = class_attention(site.tap, site.prefix)
        ranked = attention.topk(attention.shape[1], dim=-1).indices
        stay = site.tokens_out - site.prefix
        kept, joining = ranked[:, :stay], ranked[:, stay : left_after_pruning(site) - site.prefix]
        order, count = with_prefix(site.prefix, kept), site.x.shape[1]
        if joining.shape[1] == 0:
            return prune(order, count, site.lowering)
        features = unit(site.x)[:, site.prefix :]
        destinations = take_rows(features, kept, site.lowering)
        best, nearest = (take_rows(features, joining, site.lowering) @ destinations.transpose(1, 2)).max(dim=-1)
        return Absorb(
            order=order,
            merged=joining + site.prefix,
            target=nearest + site.prefix,
            count=count,
            lowering=site.lowering,
            weight=torch.ones(site.x.shape[:2], device=site.x.device),
            gain=best,
        )

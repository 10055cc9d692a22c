"""Zero-TPrune: prune what few tokens look at and what resembles something else, by page rank on the attention graph.

Wang, Dedhia, Jha, "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained
Transformers", CVPR 2024 (arXiv:2305.17328); no official code, written from the formulas.

    s⁰ = 1/N, the class token's √N times that;   sᵗ⁺¹ = Aᵀ sᵗ         per head (weighted page rank)
    η_h = 1 where the variance of the head's s is in [0.01, 0.7]       (variance-based head filter)
    s_i = √( Σ_h η_h s²_hi / Σ_h η_h )                                 (emphasizing informative region)

    1. rank the patches by one step of s
    2. similarity: A is the less important half, B the more important one; the A patches with the largest
       max_j cos(k_i, k_j) over B are pruned
    3. importance: s among the rest, its attention renormalized over them; the largest stay

`share` of what goes in a block goes in step 2. Nothing is merged. It stands between two blocks, as in the paper: behind
the block whose attention it reads.

What the paper's text leaves open, and what stands here: the scale of s in the head filter (mean 1 over the patches),
a filter that leaves no head (all heads then), k (the mean over heads), `share` (half), and how often s is
repeated: 30 times in the first quarter of the blocks, once in the last, 8 times between; `iterations=` sets one number
for all. `start=uniform` begins with equal s (for models whose first token is not a class token).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from edgevit.tokens.base import ByShare
from edgevit.tokens.lowering import put, take, take_rows
from edgevit.tokens.plans import Prune, prune, with_prefix
from edgevit.tokens.protocol import Placement, Site
from edgevit.tokens.scores import key_metric

FLOOR = 1e-6  # against 0/0 where nothing that is left is looked at
QUIET, LOUD = 0.01, 0.7  # the head filter's bounds
SHARE = 0.5
MOST = 100  # iterations


def default_iterations(block: int, depth: int) -> int:
    """Early attention is local, so votes need many steps to travel; late attention agrees at once.

    >>> [default_iterations(block, 12) for block in (1, 3, 4, 9, 10, 12)]
    [30, 30, 8, 8, 1, 1]
    """
    quarter = depth // 4
    if block <= quarter:
        return 30
    return 1 if block > depth - quarter else 8


def page_rank(graph: torch.Tensor, start: torch.Tensor, iterations: int) -> torch.Tensor:
    """`[B, H, N, N]` with rows summing to one, `[B, 1, 1, N]` → s `[B, H, N]`."""
    s = start.expand(-1, graph.shape[1], -1, -1)
    for _ in range(iterations):
        s = s @ graph
    return s.squeeze(2)


def emphasize(scores: torch.Tensor, count: int, vhf: bool) -> torch.Tensor:
    """Root mean square over the heads that pass the filter: `[B, H, n]` → `[B, n]`. count: patches not yet gone."""
    if not vhf:
        return scores.square().mean(dim=1).sqrt()
    mean = scores.sum(dim=-1, keepdim=True) / count
    relative = scores / mean.clamp_min(FLOOR)
    variance = relative.square().sum(dim=-1) / count - 1  # of numbers whose mean is 1; absent ones are 0
    passed = ((variance >= QUIET) & (variance <= LOUD)).to(torch.float32)  # [B, H]
    passed = torch.where(passed.sum(dim=1, keepdim=True) > 0, passed, torch.ones_like(passed))
    return ((scores.square() * passed.unsqueeze(-1)).sum(dim=1) / passed.sum(dim=1, keepdim=True)).sqrt()


class ZeroTPrune(ByShare):
    """`zerotprune:keep=0.7@4,7,10`: prune 30 % of the patches behind these blocks, by page rank and similarity."""

    name: ClassVar[str] = "zerotprune"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vhf": ("on", "off"),
        "start": ("class", "uniform"),
        "iterations": (),
        "share": (),
    }
    placement: ClassVar[Placement] = "post"
    probabilities: ClassVar[bool] = True
    merges: ClassVar[bool] = False

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """`iterations` is a whole number, `share` a share."""
        if name == "iterations" and not (value.isdecimal() and 1 <= int(value) <= MOST):
            return f"iterations={value} must be a whole number from 1 to {MOST}: each is one product in the program"
        if name == "share" and not (value.replace(".", "", 1).isdecimal() and 0 <= float(value) <= 1):
            return f"share={value} must be from 0 to 1 (0.3: of what goes, 30 % goes for its similarity)"
        return None

    @staticmethod
    def plan(site: Site) -> Prune:
        """Rank, prune the similar, rank again, keep the best."""
        assert site.tap.probabilities is not None  # asked for by `probabilities`
        graph = site.tap.probabilities.to(torch.float32)
        count, prefix, vhf = graph.shape[-1], site.prefix, site.options.get("vhf", "on") == "on"
        patches, keep = count - prefix, site.tokens_out - prefix
        similar = min(round(float(site.options.get("share", SHARE)) * (patches - keep)), patches // 2)
        start = _start(count, prefix > 0 and site.options.get("start", "class") == "class", graph)
        if similar:
            vote = emphasize(page_rank(graph, start, 1)[..., prefix:], patches, vhf)
            gone = _most_similar(site, vote, similar)
            alive = 1 - put(gone + prefix, torch.ones_like(gone, dtype=torch.float32), count)
            graph, start = graph * alive[:, None, None], start * alive[:, None, None]
            graph = graph / graph.sum(dim=-1, keepdim=True).clamp_min(FLOOR)
            start = start / start.sum(dim=-1, keepdim=True)
        iterations = int(site.options.get("iterations", default_iterations(site.block, site.depth)))
        rank = emphasize(page_rank(graph, start, iterations)[..., prefix:], patches - similar, vhf)
        if similar:
            rank = rank + (alive[:, prefix:] - 1)  # below every rank, which is not negative
        return prune(with_prefix(prefix, rank.topk(keep, dim=-1).indices), count, site.lowering)


def _start(count: int, first_counts: bool, like: torch.Tensor) -> torch.Tensor:
    """s⁰: `[1, 1, 1, N]`, summing to one."""
    first = count**0.5 if first_counts else 1.0
    s = torch.cat([like.new_full((1,), first), like.new_ones(count - 1)])
    return (s / (first + count - 1)).reshape(1, 1, 1, count)


def _most_similar(site: Site, vote: torch.Tensor, similar: int) -> torch.Tensor:
    """Patches of the less important half that resemble one of the other half most: `[B, similar]`."""
    patches = vote.shape[1]
    order = vote.topk(patches, dim=-1).indices
    metric = take_rows(key_metric(site.tap, site.prefix), order, site.lowering)
    half = patches - patches // 2
    closest = (metric[:, half:] @ metric[:, :half].transpose(1, 2)).amax(dim=-1)
    return take(order[:, half:], closest.topk(similar, dim=-1).indices, site.lowering)

"""Expedit: cluster the patch grid behind a block, run the middle blocks on the clusters, rebuild the grid from them.

Liang et al., "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning", NeurIPS 2022
(arXiv:2210.01035), section 3; written from the formulas.

    clustering   c = means of h' × w' cells of the h × w grid; then 5 times:
                 a_lk = softmax over k of −τ ‖x_l − c_k‖², for clusters k at most 2 cells away (down and across) from
                 the cell of patch l, else 0;   c_k = Σ_l a_lk x_l / Σ_l a_lk
    rebuilding   w_lk = exp(−τ ‖x_l − c_k‖²), both as they were behind the clustering block; the 20 nearest clusters
                 of each patch; out_l = Σ_k (w_lk / ‖w_l‖) c_k, where c_k is what the blocks between made of it

τ is 0.01 in the paper, for the features of its models; smaller features would be blurred (ViT-Tiny falls to chance).
Without `tau=` it is 5 over the median squared distance of a patch to its nearest cell mean, so that scale does not
matter; `tau=0.01` is the paper's. `norm` is the norm of w_l: `l2` as in the reference, although rows of w then sum to
more than one (up to √20) and features grow; `l1` makes them means. Prefix tokens pass through both ways.

It needs the grid, so it can stand only where no token is missing, once in a stage; and clusters are nothing a head can
read, so `until=` or a model that needs all tokens back must rebuild. A cluster has no single position, so models whose
attention reads positions are refused. Differences from the reference, none of which changes a result that is a number:
‖x_l‖² cancels in both steps and is left out, w is taken relative to its row's largest, the division by Σ_l is a softmax
over l, and a mask is −1e4 behind τ; nothing overflows in float16 or vanishes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from edgevit.tokens.base import Reduction, kept
from edgevit.tokens.plans import with_prefix
from edgevit.tokens.protocol import Placement, Site

if TYPE_CHECKING:
    from edgevit.stages import VitModel
    from edgevit.tokens.counting import Counts

SHARP = 5.0  # τ times the squared distance of a typical patch to its nearest cell mean
LEAST = 1e-3  # of ‖x‖²: a smaller distance counts as this, so τ ‖x‖² stays below 5000 and float16 holds it
FLOOR = 1e-6  # against 5/0 where all features are 0
ROUNDS = 5
REACH = 2  # cells
NEAREST = 20  # clusters that rebuild a patch
FAR = -1e4  # a logit that float16 holds and whose exponential is 0
STRETCH = 2.0  # how much longer than wide, in patches, a cluster's cell may be


def cluster_grid(grid: tuple[int, int], count: int) -> tuple[int, int] | None:
    """(down, across) of `count` clusters with the squarest cells in patches; None where none is square enough.

    >>> cluster_grid((14, 14), 49), cluster_grid((16, 32), 50), cluster_grid((14, 14), 13)
    ((7, 7), (5, 10), None)
    """
    height, width = grid

    def stretch(shape: tuple[int, int]) -> float:
        ratio = height * shape[1] / (width * shape[0])
        return max(ratio, 1 / ratio)

    shapes = [(down, count // down) for down in range(1, min(height, count) + 1) if count % down == 0]
    best = min((shape for shape in shapes if shape[1] <= width), key=stretch, default=None)
    return best if best and stretch(best) <= STRETCH else None


@dataclass(frozen=True)
class Clusters:
    """Output patch k is Σ_l gather[k, l] x_l; restored patch l is Σ_k rebuild[l, k] y_k. `[B, K, n]`, `[B, n, K]`."""

    prefix: int
    gather: torch.Tensor
    rebuild: torch.Tensor

    def apply(self, x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One product. Sizes are not tracked."""
        clusters = self.gather.to(x.dtype) @ x[:, self.prefix :]
        return torch.cat([x[:, : self.prefix], clusters], dim=1), None

    def source(self) -> torch.Tensor:
        """The patch with the largest part in each cluster."""
        return with_prefix(self.prefix, self.gather.argmax(dim=-1))

    def slots(self) -> torch.Tensor:
        """The nearest cluster."""
        return with_prefix(self.prefix, self.rebuild.argmax(dim=-1))

    def dropped(self) -> torch.Tensor:
        """None."""
        return torch.zeros_like(self.slots(), dtype=torch.bool)

    def restore(self, y: torch.Tensor) -> torch.Tensor | None:
        """Patches from clusters, one product."""
        patches = self.rebuild.to(y.dtype) @ y[:, self.prefix :]
        return torch.cat([y[:, : self.prefix], patches], dim=1)


class Expedit(Reduction):
    """`expedit:keep=0.25,until=10@4`: behind block 4 a quarter as many clusters, behind block 10 the grid again."""

    name: ClassVar[str] = "expedit"
    keys: ClassVar[Mapping[str, str]] = {
        "keep": "share of the patches that there are clusters, above 0 and at most 1",
        "clusters": "clusters, a number that makes a grid: 49 is 7 x 7",
    }
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"norm": ("l2", "l1"), "tau": ()}
    placement: ClassVar[Placement] = "post"
    positions: ClassVar[bool] = False
    no_search: ClassVar[str | None] = "clusters once, so there is nothing to spread; give keep= and until="

    @classmethod
    def check_model(cls, vit: VitModel, restoring: bool) -> str | None:
        """Something must rebuild the grid."""
        if not restoring:
            return (
                "expedit leaves clusters that this model's head cannot read; say behind which block the grid comes "
                "back, for example expedit:keep=0.25,until=10@4, or use tome"
            )
        return super().check_model(vit, restoring)

    @classmethod
    def check_counts(cls, counts: Counts, vit: VitModel) -> str | None:
        """One clustering of a whole grid, rebuilt later."""
        homes = [stage for stage in vit.stages for _ in stage.blocks]
        until = counts.schedule.until
        for number, (stage, now, left) in enumerate(zip(homes, counts.before, counts.after, strict=True), 1):
            if left == now:
                continue
            count = left - stage.prefix
            if now < stage.tokens:
                return f"expedit clusters a whole grid, and block {number} sees clusters already; name one block with @"
            if not stage.restores and (until is None or number >= until):
                return f"expedit at block {number} is never rebuilt; give until= a later block"
            if cluster_grid(stage.grid, count) is None:
                fit = [k for k in range(1, now - stage.prefix + 1) if cluster_grid(stage.grid, k)]
                near = sorted(sorted(fit, key=lambda k: abs(k - count))[:3])
                grid = f"{stage.grid[0]} x {stage.grid[1]}"
                return f"{count} clusters make no grid over {grid} patches; clusters={' or '.join(map(str, near))} do"
        return None

    @staticmethod
    def default_blocks(depth: int) -> tuple[int, ...]:
        """Behind the first third, as the paper's middle settings."""
        return (max(1, depth // 3),)

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """`clusters` is a whole number."""
        if key == "clusters" and (value < 1 or value != int(value)):
            return f"clusters={value:g} must be a whole number, 1 or more"
        return Reduction.check_amount(key, value)

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """`tau` is a factor on squared distances."""
        fits = value.replace(".", "", 1).isdecimal() and 0 < float(value) <= 100
        return None if fits else f"tau={value} must be a number above 0 and at most 100 (0.01 in the paper)"

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """On a square grid `keep` is rounded up to a square.

        >>> Expedit.tokens_after(197, 1, "keep", 0.25), Expedit.tokens_after(197, 1, "clusters", 100)
        (50, 101)
        """
        patches = tokens - prefix
        if key == "clusters":
            return prefix + min(int(value), patches)
        side = math.isqrt(patches)
        if side**2 == patches:
            return prefix + kept(side, math.sqrt(value)) ** 2
        return prefix + kept(patches, value)

    @staticmethod
    def budget_grid(tokens: int) -> tuple[str, tuple[float, ...]]:
        """Squares, falling."""
        return "clusters", tuple(float(side**2) for side in range(math.isqrt(tokens), 0, -1))

    @staticmethod
    def plan(site: Site) -> Clusters:
        """Five rounds of soft assignment inside the neighbourhood, then the way back."""
        patches = site.x[:, site.prefix :].to(torch.float32)
        shape = cluster_grid(site.grid, site.tokens_out - site.prefix)
        assert shape is not None  # check_counts
        centers = _pooled(patches, site.grid, shape)
        tau = _sharpness(patches, centers) if "tau" not in site.options else float(site.options["tau"])
        beyond = _beyond(site.grid, shape, patches)
        for _ in range(ROUNDS):
            gather = (_nearness(patches, centers, tau) + beyond).log_softmax(dim=-1).softmax(dim=1).transpose(1, 2)
            centers = gather @ patches
        return Clusters(site.prefix, gather, _rebuild(_nearness(patches, centers, tau), site.options.get("norm", "l2")))


def _sharpness(patches: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """τ for features of any scale: `[B, 1, 1]`."""
    squares = patches.square().sum(dim=-1)
    distance = squares - _nearness(patches, centers, 1.0).amax(dim=-1)
    median = distance.topk(distance.shape[1] // 2 + 1, dim=-1).values[:, -1:]
    least = (LEAST * squares.mean(dim=-1, keepdim=True)).clamp_min(FLOOR)
    return (SHARP / median.maximum(least)).unsqueeze(-1)


def _nearness(patches: torch.Tensor, centers: torch.Tensor, tau: torch.Tensor | float) -> torch.Tensor:
    """−τ ‖x_l − c_k‖² + τ ‖x_l‖²: `[B, n, C]`, `[B, K, C]` → `[B, n, K]`."""
    return tau * (2 * patches @ centers.transpose(1, 2) - centers.square().sum(dim=-1).unsqueeze(1))


def _rebuild(nearness: torch.Tensor, norm: str) -> torch.Tensor:
    """Rows of w over the 20 nearest clusters (those that tie with the last too), divided by their norm."""
    nearest = nearness.topk(min(NEAREST, nearness.shape[-1]), dim=-1).values
    weights = (nearness - nearest[..., :1]).exp() * (nearness >= nearest[..., -1:]).to(nearness.dtype)
    if norm == "l1":
        return weights / weights.sum(dim=-1, keepdim=True)
    return weights / weights.square().sum(dim=-1, keepdim=True).sqrt()


def _pooled(patches: torch.Tensor, grid: tuple[int, int], shape: tuple[int, int]) -> torch.Tensor:
    """Means over cells that cover the grid, overlapping where it does not divide: `[B, h * w, C]` → `[B, K, C]`."""
    batch, _, width = patches.shape
    down, across = (_cells(patches, n, k) for n, k in zip(grid, shape, strict=True))
    rows = (down @ patches.reshape(batch, grid[0], grid[1] * width)).reshape(batch, shape[0], grid[1], width)
    return (across @ rows).reshape(batch, shape[0] * shape[1], width)


def _cells(like: torch.Tensor, length: int, cells: int) -> torch.Tensor:
    """`[cells, length]`: cell i averages positions ⌊i·length/cells⌋ up to ⌈(i + 1)·length/cells⌉."""
    spans = [(i * length // cells, -(-(i + 1) * length // cells)) for i in range(cells)]
    return like.new_tensor([[float(a <= p < b) / (b - a) for p in range(length)] for a, b in spans])


def _beyond(grid: tuple[int, int], shape: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """0 for a patch and a cluster within reach, else −1e4: `[h * w, K]`."""
    near = []
    for length, cells in zip(grid, shape, strict=True):
        home = torch.arange(length, device=like.device) * cells // length
        near.append((home.unsqueeze(1) - torch.arange(cells, device=like.device)).abs() <= REACH)
    both = near[0][:, None, :, None] & near[1][None, :, None, :]
    return torch.where(both.reshape(grid[0] * grid[1], shape[0] * shape[1]), 0.0, FAR)

"""SiT: between the stages of a ViT, a learned soft assignment slims the patches to fewer tokens.

Zong et al., "Self-slimmed Vision Transformer", ECCV 2022 (arXiv:2111.12624), token slimming module; written from the
formulas.

    G = softmax over the N patches of  scale · Linear_{C/2 -> K}(GELU(Linear_{C -> C/2}(LN x)))      [B, N, K]
    y = Gᵀ x                                                                                         [B, K, C]
    K_i = int(N0 · keep^i) behind stage i = 1, 2, ...; the last stage is not slimmed

Prefix tokens (class, distillation) bypass it. The inverse module and the distillation losses exist in training only.

A trap of the reference repository: its forward slims only when a distillation type is set, so a checkpoint built for
plain evaluation runs dense and slow without a word. Here the slimming always runs.

Keys are ours (`slims.{i}.norm`, `.hidden`, `.assign`, `.scale`), and so is that the scale is learned: no key list of a
public checkpoint could be read. The published MACs are about 0.3 G above those of a plain patch embedding, which
suggests another stem; this module is the method on timm's plain ViT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.errors import LoadError, ScheduleError
from edgevit.trained.base import Trained, build_backbone
from edgevit.trained.rebuild import Architecture, one_amount

if TYPE_CHECKING:
    from edgevit.tokens.lowering import Lowering
    from edgevit.tokens.schedule import TokenSchedule

STAGES = {  # blocks per stage of the published sizes
    "tiny": (1, 1, 1, 11),
    "small": (9, 3, 2, 2),
    "medium": (10, 4, 3, 3),
    "large": (10, 4, 3, 7),
}


class Slim(nn.Module):
    """Patches `[B, N, C]` → `[B, K, C]`, each a convex combination of the inputs."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width // 2)
        self.assign = nn.Linear(width // 2, tokens)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """One small MLP and one product."""
        return assignment(self, patches).transpose(1, 2) @ patches


def assignment(slim: Any, patches: torch.Tensor) -> torch.Tensor:
    """Patches `[B, N, C]` → weights `[B, N, K]` that sum to one over the patches."""
    logits: torch.Tensor = slim.scale * slim.assign(F.gelu(slim.hidden(slim.norm(patches))))
    return logits.softmax(dim=1)


def slimmed(patches: int, keep: float, stages: int) -> tuple[int, ...]:
    """Patches behind each slimming of a model of `stages` stages.

    >>> slimmed(196, 0.5, 4)
    (98, 49, 24)
    """
    return tuple(int(patches * keep**stage) for stage in range(1, stages))


class Sit(Trained):
    """Images `[B, 3, H, W]` → what the backbone's head gives, `[B, classes]`.

    slims: one behind each stage but the last. stages: blocks per stage. counts: patches behind each slimming.
    """

    method: ClassVar[str] = "sit"

    def __init__(self, backbone: Any, slims: Sequence[Any], stages: Sequence[int]) -> None:
        super().__init__(backbone)
        patches, self.prefix = backbone.patch_embed.num_patches, backbone.num_prefix_tokens
        self.slims, self.stages = nn.ModuleList(slims), tuple(stages)
        self.counts = counts = tuple(int(slim.assign.out_features) for slim in slims)
        self.ends = tuple(accumulate(stages))[:-1]  # blocks (from 1) that a slimming follows
        per_stage = zip(stages, (patches, *counts), strict=True)
        self.tokens = tuple(self.prefix + count for blocks, count in per_stage for _ in range(blocks))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Slim behind the last block of each stage; timm's own blocks and head do the rest."""
        x = self.embed(images)
        for number, block in enumerate(self.backbone.blocks, 1):
            x = block(x)
            if number in self.ends:
                slim = self.slims[self.ends.index(number)]
                x = torch.cat([x[:, : self.prefix], slim(x[:, self.prefix :])], dim=1)
        return self.classify(x)


def create(
    name: str,
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    *,
    stages: Sequence[int] = (),
    keep: float = 0.5,
    counts: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Sit:
    """A SiT on timm's `name` with random weights.

    stages: blocks per stage, as many in all as the backbone has (STAGES lists the published ones); it has no default,
    because the weights fit any split and only the right one gives the trained model. counts: patches behind each
    slimming, where they are known; None: int(N0 * keep^i). Raises LoadError.
    """
    if not 0 < keep < 1:
        raise LoadError(f"sit: keep={keep:g} must be above 0 and below 1 (0.5 halves the patches behind each stage)")
    backbone = build_backbone(name, num_classes, input_size, options)
    depth, patches = len(backbone.blocks), backbone.patch_embed.num_patches
    if sum(stages) != depth or any(blocks < 1 for blocks in stages):
        raise LoadError(
            f"sit: stages={list(stages)} must be blocks per stage, {depth} in all for timm:{name}; published: {STAGES}"
        )
    counts = slimmed(patches, keep, len(stages)) if counts is None else tuple(counts)
    if any(not count for count in counts):
        raise LoadError(f"sit: keep={keep:g} leaves none of {patches} patches after {len(stages) - 1} slimmings")
    if len(counts) != len(stages) - 1:
        raise LoadError(f"sit: {len(counts)} slimmings need {len(counts) + 1} stages, got stages={list(stages)}")
    return Sit(backbone, [Slim(backbone.embed_dim, count) for count in counts], stages).eval()


class SiTSchedule(Architecture):
    """`sit:keep=0.5`: as the checkpoint was trained; its weights fix how many patches each slimming leaves."""

    name: ClassVar[str] = "sit"
    weights: ClassVar[str | None] = "sit"
    keys: ClassVar[Mapping[str, str]] = {"keep": "share of the patches behind each slimming, the checkpoint's own"}

    @staticmethod
    def check_together(key: str, amounts: Sequence[float], options: Mapping[str, str]) -> str | None:
        """One share."""
        return one_amount(key, amounts)

    @classmethod
    def build(cls, module: Any, schedule: TokenSchedule, lowering: Lowering) -> Sit:
        """The same model, once its counts are those asked for."""
        asked = slimmed(module.backbone.patch_embed.num_patches, schedule.amounts[0], len(module.stages))
        if asked != module.counts:
            raise ScheduleError(
                f"{schedule} leaves {_per_slimming(asked)} patches, and this checkpoint was trained to leave "
                f"{_per_slimming(module.counts)}; train one for each keep"
            )
        return Sit(module.backbone, list(module.slims), module.stages)


def _per_slimming(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))

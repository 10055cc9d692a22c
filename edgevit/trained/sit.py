"""SiT: between the stages of a ViT, a learned soft assignment slims the patches to fewer tokens.

Zong et al., "Self-slimmed Vision Transformer", ECCV 2022 (arXiv:2111.12624), token slimming module; written from the
formulas.

    G = softmax over the N patches of  scale · Linear_{C/2 -> K}(GELU(Linear_{C -> C/2}(LN x)))      [B, N, K]
    y = Gᵀ x                                                                                         [B, K, C]
    K_i = int(N0 · keep^i) behind stage i = 1, 2, ...; the last stage is not slimmed

Prefix tokens (class, distillation) bypass it. The inverse module and the distillation losses exist in training only.

A trap of the reference repository: its forward slims only when a distillation type is set, so a checkpoint built for
plain evaluation runs dense and slow without a word. Here the slimming always runs.

Keys are ours (`slims.{i}.norm`, `.hidden`, `.assign`, `.scale`): no key list of a public checkpoint could be read. The
published models also stand on a convolutional stem (their MACs only add up with one), which timm's plain ViT lacks;
this module is the method on a plain ViT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.errors import LoadError
from edgevit.trained.base import Trained, build_backbone

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
    """Images `[B, 3, H, W]` → what the backbone's head gives, `[B, classes]`."""

    def __init__(self, backbone: Any, stages: Sequence[int], keep: float) -> None:
        super().__init__(backbone)
        patches, self.prefix = backbone.patch_embed.num_patches, backbone.num_prefix_tokens
        counts = slimmed(patches, keep, len(stages))
        self.slims = nn.ModuleList(Slim(backbone.embed_dim, count) for count in counts)
        self.ends = tuple(accumulate(stages))[:-1]  # blocks (from 1) that a slimming follows
        per_stage = zip(stages, (patches, *counts), strict=True)
        self.tokens = tuple(self.prefix + count for blocks, count in per_stage for _ in range(blocks))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Slim behind the last block of each stage; timm's own blocks and head do the rest."""
        model = self.backbone
        x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        for number, block in enumerate(model.blocks, 1):
            x = block(x)
            if number in self.ends:
                slim = self.slims[self.ends.index(number)]
                x = torch.cat([x[:, : self.prefix], slim(x[:, self.prefix :])], dim=1)
        out: torch.Tensor = model.forward_head(model.norm(x))
        return out


def create(
    name: str,
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    *,
    stages: Sequence[int] = (),
    keep: float = 0.5,
    options: Mapping[str, Any] | None = None,
) -> Sit:
    """A SiT on timm's `name` with random weights.

    stages: blocks per stage, as many in all as the backbone has (STAGES lists the published ones); it has no default,
    because the weights fit any split and only the right one gives the trained model. Raises LoadError.
    """
    if not 0 < keep < 1:
        raise LoadError(f"sit: keep={keep:g} must be above 0 and below 1 (0.5 halves the patches behind each stage)")
    backbone = build_backbone(name, num_classes, input_size, options)
    depth, patches = len(backbone.blocks), backbone.patch_embed.num_patches
    if sum(stages) != depth or any(blocks < 1 for blocks in stages):
        raise LoadError(
            f"sit: stages={list(stages)} must be blocks per stage, {depth} in all for timm:{name}; published: {STAGES}"
        )
    if any(not count for count in slimmed(patches, keep, len(stages))):
        raise LoadError(f"sit: keep={keep:g} leaves none of {patches} patches after {len(stages) - 1} slimmings")
    return Sit(backbone, tuple(stages), keep).eval()

"""DynamicViT: a small predictor in front of some blocks says which patches stay.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", NeurIPS 2021
(arXiv:2106.02034), section 3; written from the formulas.

    z = GELU(Linear(LN x))                                  one row per patch, C channels
    u = [first C/2 channels of z, mean over the patches of the last C/2]
    s = log softmax(MLP(u))_0,   MLP: C -> C/2 -> C/4 -> 2, GELU between
    in front of stage k = 1, 2, 3: the int(N0 · rho^k) patches with the largest s stay, in that order

N0 is the number of patches of the image. In training the global mean is weighted by the policy so far; at inference
every present patch counts one. Prefix tokens (class, distillation, registers) are neither scored nor dropped.

Keys. The repository's names `score_predictor.{k}`, `in_conv`, `out_conv` are its; the numbers inside the two
sequences follow from the layers in the order above, and the backbone's are DeiT's. `score_predictor.` is `predictors.`
here and everything else gets `backbone.` in front (`Trained.own_keys`). No public checkpoint was opened to confirm it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from edgevit.errors import LoadError
from edgevit.tokens.lowering import Lowering, take_rows
from edgevit.trained.base import Trained, build_backbone, check_blocks


class Predictor(nn.Module):
    """Patches `[B, N, C]` → log-probabilities `[B, N, 2]` of (stay, go)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Half of the channels stay local, the other half is averaged over the patches."""
        local, whole = self.in_conv(patches).chunk(2, dim=-1)
        whole = whole.mean(dim=1, keepdim=True).expand(-1, patches.shape[1], -1)
        out: torch.Tensor = self.out_conv(torch.cat([local, whole], dim=-1))
        return out


def scores(predictor: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """Patches `[B, N, C]` → how much each should stay, `[B, N]`."""
    out: torch.Tensor = predictor(patches)[..., 0]
    return out


def prune(x: torch.Tensor, score: torch.Tensor, prefix: int, keep: int, lowering: Lowering) -> torch.Tensor:
    """`[B, P + N, C]`, scores of the patches `[B, N]` → prefix and best patches `[B, P + keep, C]`, in score order."""
    order = score.topk(keep, dim=-1).indices
    return torch.cat([x[:, :prefix], take_rows(x[:, prefix:], order, lowering)], dim=1)


def kept(patches: int, keep: float, stages: int) -> tuple[int, ...]:
    """Patches that stay at each stage; the product is truncated as it is in float64, like the reference's.

    >>> kept(196, 0.7, 3)
    (137, 96, 67)
    """
    return tuple(int(patches * keep**stage) for stage in range(1, stages + 1))


class DynamicVit(Trained):
    """Images `[B, 3, H, W]` → what the backbone's head gives, `[B, classes]`.

    backbone: timm's VisionTransformer. predictors: one per stage. stages: block (from 0) → (predictor, patches kept).
    """

    method: ClassVar[str] = "dynamicvit"
    renames: ClassVar[Mapping[str, str]] = {"score_predictor.": "predictors."}

    def __init__(self, backbone: Any, blocks: Sequence[int], keep: float, lowering: Lowering) -> None:
        super().__init__(backbone)
        patches, self.prefix, self.lowering = backbone.patch_embed.num_patches, backbone.num_prefix_tokens, lowering
        self.predictors = nn.ModuleList(Predictor(backbone.embed_dim) for _ in blocks)
        counts = kept(patches, keep, len(blocks))
        self.stages = {block - 1: (stage, counts[stage]) for stage, block in enumerate(blocks)}
        now, tokens = patches, []
        for index in range(len(backbone.blocks)):
            now = self.stages.get(index, (0, now))[1]
            tokens.append(self.prefix + now)
        self.tokens = tuple(tokens)

    def steps(self) -> nn.ModuleList:
        """The predictors."""
        return self.predictors

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Prune in front of the stages' blocks; timm's own blocks and head do the rest."""
        x = self.embed(images)
        for index, block in enumerate(self.backbone.blocks):
            if index in self.stages:
                stage, keep = self.stages[index]
                score = scores(self.predictors[stage], x[:, self.prefix :])
                x = prune(x, score, self.prefix, keep, self.lowering)
            x = block(x)
        return self.classify(x)


def create(
    name: str,
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    *,
    keep: float = 0.7,
    blocks: Sequence[int] = (4, 7, 10),
    lowering: Lowering = "gather",
    options: Mapping[str, Any] | None = None,
) -> DynamicVit:
    """A DynamicViT on timm's `name` with random weights.

    keep: rho, the share that stays at each stage. blocks: pruned in front of these, from 1 (the paper's 3, 6, 9 count
    from 0). Neither is written in the weights: give what the checkpoint was trained with. Raises LoadError.
    """
    if not 0 < keep <= 1:
        raise LoadError(f"dynamicvit: keep={keep:g} must be above 0 and at most 1 (0.7 keeps 70 % at each stage)")
    backbone = build_backbone(name, num_classes, input_size, options)
    blocks = check_blocks("dynamicvit", blocks, len(backbone.blocks))
    patches = backbone.patch_embed.num_patches
    if blocks and not kept(patches, keep, len(blocks))[-1]:
        raise LoadError(f"dynamicvit: keep={keep:g} leaves none of {patches} patches after {len(blocks)} stages")
    return DynamicVit(backbone, blocks, keep, lowering).eval()

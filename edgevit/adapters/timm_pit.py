"""timm's PoolingVisionTransformer (PiT, distilled or not): a strided convolution between its stages.

The convolution needs the map, so all tokens come back at a stage's end; the last stage keeps what it merged, since the
head reads the class token(s) alone. Blocks are timm's own, as in `timm_vit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgevit.adapters.known import check_children, check_eval, check_methods, check_part, check_type
from edgevit.adapters.timm_block import ResidualBlock
from edgevit.adapters.timm_vit import check_block
from edgevit.stages import Stage, VitModel

if TYPE_CHECKING:
    from timm.models.pit import PoolingVisionTransformer

MODEL_CHILDREN = {"patch_embed", "pos_drop", "transformers", "norm", "head_drop", "head", "head_dist"}
STAGE_CHILDREN = {"pool", "norm", "blocks"}
MODEL_METHODS = ("forward", "forward_features", "forward_head")


def adapt(module: nn.Module) -> VitModel | None:
    """Take a timm PoolingVisionTransformer apart; None for anything else."""
    try:
        from timm.models.pit import PoolingVisionTransformer
    except ModuleNotFoundError:
        return None  # without timm there can be no timm model
    if not isinstance(module, PoolingVisionTransformer):
        return None
    _check_model(module)
    return VitModel(
        module=module,
        family="timm PoolingVisionTransformer",
        stem=PitStem(module),
        stages=tuple(_stages(module)),
        head=PitHead(module),
        class_token=True,
        image_size=tuple(module.patch_embed.img_size),
        pooling="token",
    )


def _stages(model: PoolingVisionTransformer) -> list[Stage]:
    grid = tuple(model.patch_embed.grid_size)
    stages = []
    for transformer in model.transformers:
        part: Any = transformer
        before = grid
        if part.pool is not None:
            conv = part.pool.conv
            sizes = zip(grid, conv.kernel_size, conv.padding, conv.stride, strict=True)
            grid = tuple((n + 2 * p - k) // s + 1 for n, k, p, s in sizes)
        stages.append(
            Stage(
                blocks=tuple(ResidualBlock(block) for block in part.blocks),
                prefix=model.num_tokens,
                grid=(grid[0], grid[1]),
                restores=transformer is not model.transformers[-1],
                enter=PitEnter(part, model.num_tokens, (before[0], before[1])),
            )
        )
    return stages


def _check_model(model: PoolingVisionTransformer) -> None:
    from timm.models.pit import ConvEmbedding, Pooling, PoolingVisionTransformer, SequentialTuple, Transformer

    name = type(model).__name__
    check_methods(model, MODEL_METHODS, PoolingVisionTransformer)
    check_children(name, model, MODEL_CHILDREN)
    check_eval(model)
    check_type("patch_embed", model.patch_embed, ConvEmbedding)
    check_type("transformers", model.transformers, SequentialTuple)
    for i, transformer in enumerate(model.transformers):
        part: Any = transformer
        check_part(f"transformers.{i}", part, STAGE_CHILDREN, Transformer)
        if part.pool is not None:
            check_type(f"transformers.{i}.pool", part.pool, Pooling)
        for j, block in enumerate(part.blocks):
            check_block(f"transformers.{i}.blocks.{j}", block)


class PitStem(nn.Module):
    """Images `[B, 3, H, W]` → tokens `[B, P + h * w, C]`, position embedding added to the patches."""

    def __init__(self, model: PoolingVisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Patch embedding with overlap, positions, class token(s) in front."""
        patches = self.model.patch_embed(images) + self.model.pos_embed
        prefix = self.model.cls_token.expand(len(images), -1, -1)
        return torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)


class PitEnter(nn.Module):
    """Tokens of one stage → tokens of the next: a convolution for the map, a linear layer for the class token(s)."""

    def __init__(self, part: nn.Module, prefix: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.part: Any = part
        self.prefix, self.grid = prefix, grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, P + h * w, C]` → `[B, P + h' * w', C']`; nothing but a norm in front of the first stage."""
        if self.part.pool is not None:
            image = x[:, self.prefix :].transpose(1, 2).reshape(len(x), x.shape[2], *self.grid)
            image, prefix = self.part.pool(image, x[:, : self.prefix])
            x = torch.cat([prefix, image.flatten(2).transpose(1, 2)], dim=1)
        out: torch.Tensor = self.part.norm(x)
        return out


class PitHead(nn.Module):
    """Final norm and classifier(s), on the class token(s)."""

    def __init__(self, model: PoolingVisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, M, C]` → what the model returns; sizes weight nothing that is read."""
        out: torch.Tensor = self.model.forward_head(self.model.norm(x[:, : self.model.num_tokens]))
        return out

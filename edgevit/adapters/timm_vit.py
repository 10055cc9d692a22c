"""timm's VisionTransformer: ViT, DeiT, DeiT distilled, DeiT-III, DINOv2 (registers or not), MAE, CLIP, SigLIP.

What it takes apart: pre-norm, post-norm and parallel blocks (`timm_vit_blocks.py`) with `timm.layers.Attention`, any
pooling. Blocks of another type, other attention (differential, rotary), and overridden forwards are refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgevit.adapters.known import check_children, check_eval, check_methods, check_part, check_type
from edgevit.adapters.pooling import PoolingHead
from edgevit.adapters.timm_block import ResidualBlock
from edgevit.adapters.timm_vit_blocks import BRANCH_CHILDREN, CHILDREN, in_parts
from edgevit.errors import UnsupportedModel
from edgevit.stages import Stage, VitModel

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

MODEL_CHILDREN = {
    "patch_embed", "pos_drop", "patch_drop", "norm_pre", "blocks", "norm", "attn_pool", "fc_norm", "head_drop",
    "head", "head_dist",
}  # fmt: skip
BLOCK_CHILDREN = CHILDREN["Block"]
ATTENTION_CHILDREN = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"}
POOLINGS = ("", "token", "avg", "avgmax", "max", "map")
MODEL_METHODS = ("forward", "forward_features", "forward_head", "pool", "_pos_embed")


def adapt(module: nn.Module) -> VitModel | None:
    """Take a timm VisionTransformer apart; None for anything else."""
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ModuleNotFoundError:
        return None  # without timm there can be no timm model
    if not isinstance(module, VisionTransformer):
        return None
    _check_model(module)
    blocks = tuple(in_parts(block) for block in module.blocks)
    height, width = module.patch_embed.grid_size
    return VitModel(
        module=module,
        family="timm VisionTransformer",
        stem=TimmStem(module),
        stages=(Stage(blocks, module.num_prefix_tokens, (height, width), restores=module.global_pool == ""),),
        head=PoolingHead(module, skip=0 if module.pool_include_prefix else module.num_prefix_tokens),
        class_token=module.cls_token is not None,
        image_size=tuple(module.patch_embed.img_size),
        pooling=module.global_pool or "none",
    )


def _check_model(model: VisionTransformer) -> None:
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    name = type(model).__name__
    check_methods(model, MODEL_METHODS, VisionTransformer, VisionTransformerDistilled)
    check_children(name, model, MODEL_CHILDREN)
    check_eval(model)
    if not isinstance(model.patch_drop, nn.Identity):
        raise UnsupportedModel(f"{name}.patch_drop drops random patches; build the model with patch_drop_rate=0")
    if model.global_pool not in POOLINGS:
        raise UnsupportedModel(
            f"{name} has global_pool={model.global_pool!r}, which cannot weight tokens by size; this adapter knows "
            f"{', '.join(repr(p) for p in POOLINGS)}"
        )
    if model.dynamic_img_size:
        raise UnsupportedModel(f"{name} has dynamic_img_size=True; build it with a fixed img_size")
    for index, block in enumerate(model.blocks):
        _check_any_block(f"blocks.{index}", block)


def check_block(where: str, block: Any) -> None:
    """Exactly timm's `Block` with its `Attention` (other families of timm are built from it too)."""
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block as TimmOwn

    check_part(where, block, BLOCK_CHILDREN, TimmOwn)
    check_part(f"{where}.attn", block.attn, ATTENTION_CHILDREN, Attention)


def _check_any_block(where: str, block: Any) -> None:
    """Exactly one of timm's kinds of block, with its attentions."""
    from timm.layers.attention import Attention
    from timm.models import vision_transformer

    check_type(where, block, *(getattr(vision_transformer, name) for name in CHILDREN))
    check_children(where, block, CHILDREN[type(block).__name__])  # known by now
    attentions = {f"{where}.attn": getattr(block, "attn", None)}
    for kind in ("attns", "ffns"):
        for index, branch in enumerate(getattr(block, kind, ())):
            check_children(f"{where}.{kind}.{index}", branch, BRANCH_CHILDREN)
            attentions[f"{where}.{kind}.{index}.attn"] = getattr(branch, "attn", None)
    for name, attention in attentions.items():
        if attention is not None:
            check_part(name, attention, ATTENTION_CHILDREN, Attention)


class TimmStem(nn.Module):
    """Images `[B, 3, H, W]` → tokens `[B, P + N, C]`, position embedding added."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Patch embedding, prefix tokens, positions, pre-norm."""
        x = self.model._pos_embed(self.model.patch_embed(images))
        out: torch.Tensor = self.model.norm_pre(x)
        return out


class TimmBlock(ResidualBlock):
    """timm's `Block`, in parts (positions are in the stream already)."""

"""timm's Eva: EVA, EVA-02, DINOv3, Perception Encoder, ViT with rotary positions (axial, mixed, multi-axis).

What it takes apart: `timm.models.eva.EvaBlock` and `EvaBlockPostNorm` with `EvaAttention` or
`timm.layers.attention.AttentionRope` (grouped queries too). Blocks and attention of another type, overridden forwards
and random patch dropping are refused by name. A model built with dynamic_img_size (timm's DINOv3 are) is taken at the
size of its patch embedding, the one it exports with.

A merged token is rotated as the token that it was merged into; the rotation table is frozen when the model is taken
apart, learned frequencies ("mixed") included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgevit.adapters.known import check_children, check_eval, check_methods, check_part
from edgevit.adapters.pooling import PoolingHead
from edgevit.adapters.rotation import Rotation
from edgevit.adapters.timm_block import ResidualBlock
from edgevit.errors import UnsupportedModel
from edgevit.stages import Stage, Tap, VitModel

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Tokens

MODEL_CHILDREN = {
    "patch_embed", "pos_drop", "patch_drop", "rope", "norm_pre", "blocks", "norm", "attn_pool", "fc_norm", "head_drop",
    "head",
}  # fmt: skip
BLOCK_CHILDREN = {"norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"}
ATTENTION_CHILDREN = {
    "qkv", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop",
}  # fmt: skip
MODEL_METHODS = ("forward", "forward_features", "forward_head", "pool", "_pos_embed")
POOLINGS = ("", "token", "avg", "avgmax", "max", "map")


def adapt(module: nn.Module) -> VitModel | None:
    """Take a timm Eva apart; None for anything else."""
    try:
        from timm.models.eva import Eva, EvaBlockPostNorm
    except ModuleNotFoundError:
        return None  # without timm there can be no timm model
    if not isinstance(module, Eva):
        return None
    _check_model(module)
    rotations = _rotations(module)
    blocks = tuple(
        EvaBlock(block, rotation, post_norm=isinstance(block, EvaBlockPostNorm))
        for block, rotation in zip(module.blocks, rotations, strict=True)
    )
    height, width = module.patch_embed.grid_size
    return VitModel(
        module=module,
        family="timm Eva",
        stem=EvaStem(module),
        stages=(Stage(blocks, module.num_prefix_tokens, (height, width), restores=module.global_pool == ""),),
        head=PoolingHead(module, skip=0 if module.global_pool == "map" else module.num_prefix_tokens),
        class_token=module.cls_token is not None,
        image_size=tuple(module.patch_embed.img_size),
        pooling=module.global_pool or "none",
        positional=module.rope is not None,
    )


def _check_model(model: Any) -> None:
    from timm.layers.attention import AttentionRope
    from timm.models import eva

    name = type(model).__name__
    check_methods(model, MODEL_METHODS, eva.Eva)
    check_children(name, model, MODEL_CHILDREN)
    check_eval(model)
    if model.patch_drop is not None:
        raise UnsupportedModel(f"{name}.patch_drop drops random patches; build the model with patch_drop_rate=0")
    if model.global_pool not in POOLINGS:
        raise UnsupportedModel(
            f"{name} has global_pool={model.global_pool!r}; this adapter knows {', '.join(map(repr, POOLINGS))}"
        )
    for index, block in enumerate(model.blocks):
        where = f"blocks.{index}"
        check_part(where, block, BLOCK_CHILDREN, eva.EvaBlock, eva.EvaBlockPostNorm)
        check_part(f"{where}.attn", block.attn, ATTENTION_CHILDREN, eva.EvaAttention, AttentionRope)


def _rotations(model: Any) -> list[Rotation | None]:
    """One table for all blocks, or one for each where frequencies are learned per block; None without rotation."""
    if model.rope is None:
        return [None] * len(model.blocks)
    with torch.no_grad():
        cached = getattr(model.rope, "feat_shape", None) is not None
        table = model.rope.get_embed() if cached else model.rope.get_embed(shape=model.patch_embed.grid_size)
    half = getattr(model.blocks[0].attn, "rotate_half", False)
    prefix = model.num_prefix_tokens
    if getattr(model, "rope_mixed", False):
        return [rotation_of(rows, prefix, half) for rows in table]
    shared = rotation_of(table.unsqueeze(0), prefix, half)
    return [shared] * len(model.blocks)


class EvaStem(nn.Module):
    """Images `[B, 3, H, W]` → tokens `[B, P + N, C]`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Patch embedding, prefix tokens, absolute positions where there are, pre-norm."""
        x, _ = self.model._pos_embed(self.model.patch_embed(images))
        out: torch.Tensor = self.model.norm_pre(x)
        return out


def rotation_of(embedding: torch.Tensor, prefix: int, half: bool) -> Rotation:
    """embedding: `[H or 1, N, 2 d]`, sin then cos, of the patches alone. half: pairs are d/2 apart, else neighbours."""
    sin, cos = embedding.detach().chunk(2, dim=-1)
    heads, _, width = sin.shape
    sign = torch.ones(width)
    sign[: width // 2 if half else None : 1 if half else 2] = -1
    sin = torch.cat([sin.new_zeros(heads, prefix, width), sin * sign.to(sin)], dim=1)
    return Rotation(sin, torch.cat([cos.new_ones(heads, prefix, width), cos], dim=1), half)


class EvaBlock(ResidualBlock):
    """timm's `EvaBlock` or `EvaBlockPostNorm`, in parts."""

    def __init__(self, block: nn.Module, rotation: Rotation | None, post_norm: bool) -> None:
        super().__init__(block, post_norm)
        self.rotation = rotation

    def place(self, tap: Tap, tokens: Tokens) -> Tap:
        """Rotate queries and keys by the token's position; then every query head gets its keys and values."""
        q, k = tap.q, tap.k
        if self.rotation is not None:
            sin, cos = self.rotation(tokens.place)
            q, k = self.rotation.turn(q, sin, cos), self.rotation.turn(k, sin, cos)
        return tap._replace(q=q, k=self._spread(k), v=self._spread(tap.v))

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, d]`."""
        return self._spread(super().values(x))

    def _spread(self, x: torch.Tensor) -> torch.Tensor:
        """Grouped queries: head h reads key head h // groups."""
        batch, heads, count, width = x.shape
        if heads == self.heads:
            return x
        groups = self.heads // heads
        return x.unsqueeze(2).expand(batch, heads, groups, count, width).reshape(batch, self.heads, count, width)

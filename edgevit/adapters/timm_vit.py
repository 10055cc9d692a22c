"""timm's VisionTransformer: ViT, DeiT, DeiT distilled, DeiT-III, DINOv2 (registers or not), q/k-norm, any pooling.

What it takes apart: `timm.models.vision_transformer.Block` with `timm.layers.Attention`. Blocks of another type
(parallel, post-norm, differential), other attention (rotary), and overridden forwards are refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.adapters.block import Block, heads_first, heads_last, linear_macs
from edgevit.adapters.known import check_children, check_eval, check_methods, check_type
from edgevit.errors import UnsupportedModel
from edgevit.stages import Stage, Tap, VitModel

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Tokens
    from timm.models.vision_transformer import VisionTransformer

MODEL_CHILDREN = {
    "patch_embed", "pos_drop", "patch_drop", "norm_pre", "blocks", "norm", "attn_pool", "fc_norm", "head_drop",
    "head", "head_dist",
}  # fmt: skip
BLOCK_CHILDREN = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
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
    blocks = tuple(TimmBlock(block) for block in module.blocks)
    height, width = module.patch_embed.grid_size
    return VitModel(
        module=module,
        family="timm VisionTransformer",
        stem=TimmStem(module),
        stages=(Stage(blocks, module.num_prefix_tokens, (height, width), restores=module.global_pool == ""),),
        head=TimmHead(module),
        class_token=module.cls_token is not None,
        image_size=tuple(module.patch_embed.img_size),
        pooling=module.global_pool or "none",
    )


def _check_model(model: VisionTransformer) -> None:
    from timm.layers.attention import Attention
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import Block as TimmOwn
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
        where = f"blocks.{index}"
        check_type(where, block, TimmOwn)
        check_children(where, block, BLOCK_CHILDREN)
        check_type(f"{where}.attn", block.attn, Attention)
        check_children(f"{where}.attn", block.attn, ATTENTION_CHILDREN)


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


class TimmBlock(Block):
    """timm's `Block`, in parts."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block: Any = block
        attention: Any = block.attn
        self.attention_width: int = attention.num_heads * attention.head_dim
        self.macs_per_token = (linear_macs(attention), linear_macs(block.mlp))

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Positions are in the stream already."""
        block, attention = self.block, self.block.attn
        batch, count, _ = x.shape
        normed = block.norm1(x)
        qkv = attention.qkv(normed).reshape(batch, count, 3, attention.num_heads, attention.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        gate = None if attention.gate is None else attention.gate(normed).sigmoid()
        return Tap(attention.q_norm(q), attention.k_norm(k), v, attention.scale, gate=gate)

    def query_keys(self, x: torch.Tensor) -> Tap:
        """Queries and keys alone; `v` is a stand-in without columns."""
        attention, width = self.block.attn, self.attention_width
        q, k = self._part(x, 0, 2 * width).split(width, dim=-1)
        q, k = (heads_first(part, attention.num_heads) for part in (q, k))
        return Tap(attention.q_norm(q), attention.k_norm(k), q[..., :0], attention.scale)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, d]`."""
        return heads_first(self._part(x, 2 * self.attention_width, None), self.block.attn.num_heads)

    def _part(self, x: torch.Tensor, first: int, last: int | None) -> torch.Tensor:
        qkv = self.block.attn.qkv
        bias = None if qkv.bias is None else qkv.bias[first:last]
        return F.linear(self.block.norm1(x), qkv.weight[first:last], bias)

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """Norm (where there is one), gate, projection, layer scale, residual."""
        block, attention = self.block, self.block.attn
        out = attention.norm(heads_last(attended))
        if tap.gate is not None:
            out = out * tap.gate
        result: torch.Tensor = x + block.ls1(attention.proj(out))
        return result

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`."""
        out: torch.Tensor = x + self.block.ls2(self.block.mlp(self.block.norm2(x)))
        return out


class TimmHead(nn.Module):
    """Final norm, pooling and classifier; means over patches are weighted by token size."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, M, C]`, sizes `[B, M]` or None → what the model returns (`[B, classes]` for classifiers)."""
        model = self.model
        x = model.norm(x)
        if size is None or model.global_pool not in ("avg", "avgmax", "map"):
            out: torch.Tensor = model.forward_head(x)
            return out
        first = 0 if model.pool_include_prefix else model.num_prefix_tokens
        x, size = x[:, first:], size[:, first:]
        if model.global_pool == "map":
            pooled = model.attn_pool(x, attn_mask=size.log()[:, None, None, :])
        else:
            weight = (size / size.sum(dim=1, keepdim=True)).unsqueeze(1)  # [B, 1, M]
            pooled = (weight @ x).squeeze(1)
            if model.global_pool == "avgmax":
                pooled = 0.5 * (x.amax(dim=1) + pooled)
        result: torch.Tensor = model.head(model.fc_norm(pooled))
        return result

"""timm's VisionTransformer: ViT, DeiT, DeiT distilled, DeiT-III, DINOv2 (registers or not), q/k-norm, any pooling.

What it takes apart: `timm.models.vision_transformer.Block` with `timm.layers.Attention`. Blocks of another type
(parallel, post-norm, differential), other attention (rotary), and overridden forwards are refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.errors import UnsupportedModel
from edgevit.names import listed
from edgevit.stages import Tap, VitModel

if TYPE_CHECKING:
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
        blocks=blocks,
        head=TimmHead(module),
        prefix_tokens=module.num_prefix_tokens,
        class_token=module.cls_token is not None,
        grid=(height, width),
        image_size=tuple(module.patch_embed.img_size),
        pooling=module.global_pool or "none",
    )


def _check_model(model: VisionTransformer) -> None:
    from timm.layers.attention import Attention
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import Block, VisionTransformer

    name = type(model).__name__
    known = (VisionTransformer, VisionTransformerDistilled)
    for method in MODEL_METHODS:
        found = getattr(type(model), method)
        if method in vars(model) or all(found is not getattr(cls, method) for cls in known):
            raise UnsupportedModel(f"{name}.{method} is not timm's own; this adapter does not know what it does")
    _check_children(name, model, MODEL_CHILDREN)
    if model.training:
        raise UnsupportedModel(f"{name} is in training mode; call .eval() first")
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
        _check_type(where, block, Block)
        _check_children(where, block, BLOCK_CHILDREN)
        _check_type(f"{where}.attn", block.attn, Attention)
        _check_children(f"{where}.attn", block.attn, ATTENTION_CHILDREN)


def _check_type(where: str, module: nn.Module, expected: type) -> None:
    """Exactly the type whose forward the adapter reproduces, not a subclass, not a patched instance."""
    if type(module) is not expected or "forward" in vars(module):
        given = type(module).__name__ + (" with a patched forward" if "forward" in vars(module) else "")
        raise UnsupportedModel(f"{where} is {given}; this adapter runs {expected.__module__}.{expected.__name__}")


def _check_children(where: str, module: nn.Module, known: set[str]) -> None:
    unknown = sorted({name for name, _ in module.named_children()} - known)
    if unknown:
        raise UnsupportedModel(
            f"{where} has {listed(unknown)}, which this adapter does not run; it knows {', '.join(sorted(known))}"
        )


def _linear_macs(module: Any) -> int:
    """Multiply-accumulates of one token through every Linear below a module."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


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


class TimmBlock(nn.Module):
    """One `Block`, cut open after the attention residual."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block: Any = block
        attention: Any = block.attn
        self.attention_width: int = attention.num_heads * attention.head_dim
        self.macs_per_token = (_linear_macs(attention), _linear_macs(block.mlp))

    def attend(self, x: torch.Tensor, log_size: torch.Tensor | None) -> tuple[torch.Tensor, Tap]:
        """`[B, N, C]` → `[B, N, C]` and the tap. A module call: a trace then knows whose operators these are."""
        out: tuple[torch.Tensor, Tap] = self(x, log_size)
        return out

    def forward(self, x: torch.Tensor, log_size: torch.Tensor | None) -> tuple[torch.Tensor, Tap]:
        """The attention half. The log-size bias rides as the mask, so fused kernels stay usable."""
        block, attention = self.block, self.block.attn
        batch, count, _ = x.shape
        normed = block.norm1(x)
        qkv = attention.qkv(normed).reshape(batch, count, 3, attention.num_heads, attention.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = attention.q_norm(q), attention.k_norm(k)
        mask = None if log_size is None else log_size[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scale)
        out = attention.norm(out.transpose(1, 2).reshape(batch, count, self.attention_width))
        if attention.gate is not None:
            out = out * attention.gate(normed).sigmoid()
        return x + block.ls1(attention.proj(out)), Tap(q, k, v, attention.scale, log_size)

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

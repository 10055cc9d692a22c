"""torchvision's VisionTransformer: vit_b_16, vit_b_32, vit_l_16, vit_l_32, vit_h_14, and any built from the class.

The attention is `nn.MultiheadAttention` without a mask: one stacked projection for q, k and v.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.adapters.block import Block, heads_first, heads_last, linear_macs
from edgevit.adapters.known import check_children, check_eval, check_methods, check_part
from edgevit.errors import UnsupportedModel
from edgevit.stages import Stage, Tap, VitModel

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Tokens

SOURCE = "torchvision.models.vision_transformer"
MODEL_CHILDREN = {"conv_proj", "encoder", "heads"}
ENCODER_CHILDREN = {"dropout", "layers", "ln"}
BLOCK_CHILDREN = {"ln_1", "self_attention", "dropout", "ln_2", "mlp"}


def adapt(module: nn.Module) -> VitModel | None:
    """Take a torchvision VisionTransformer apart; None for anything else."""
    if not any(cls.__module__ == SOURCE for cls in type(module).__mro__):
        return None
    source: Any = sys.modules[SOURCE]
    if not isinstance(module, source.VisionTransformer):
        return None
    model: Any = module
    check_methods(model, ("forward", "_process_input"), source.VisionTransformer)
    check_children(type(model).__name__, model, MODEL_CHILDREN)
    check_eval(model)
    check_part("encoder", model.encoder, ENCODER_CHILDREN, source.Encoder)
    for name, block in model.encoder.layers.named_children():
        check_part(name, block, BLOCK_CHILDREN, source.EncoderBlock)
        _check_attention(f"{name}.self_attention", block.self_attention)
    side = model.image_size // model.patch_size
    return VitModel(
        module=model,
        family="torchvision VisionTransformer",
        stem=TvStem(model),
        stages=(Stage(tuple(TvBlock(block) for block in model.encoder.layers), 1, (side, side)),),
        head=TvHead(model),
        class_token=True,
        image_size=(model.image_size, model.image_size),
        pooling="token",
    )


def _check_attention(where: str, attention: Any) -> None:
    check_part(where, attention, {"out_proj"}, nn.MultiheadAttention)
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        raise UnsupportedModel(f"{where} has kdim, vdim, bias_k or add_zero_attn, which this adapter does not run")


class TvStem(nn.Module):
    """Images `[B, 3, H, W]` → tokens `[B, 1 + N, C]`, position embedding added."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Patch embedding, class token, positions."""
        patches = self.model._process_input(images)
        x = torch.cat([self.model.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        out: torch.Tensor = x + self.model.encoder.pos_embedding
        return out


class TvBlock(Block):
    """torchvision's `EncoderBlock`, in parts."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        attention = block.self_attention
        self.heads: int = attention.num_heads
        self.attention_width: int = attention.embed_dim
        projections = attention.in_proj_weight.numel() + linear_macs(attention)
        self.macs_per_token = (projections, linear_macs(block.mlp))

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Positions are in the stream already."""
        q, k, v = self._rows(x, 0, 3)
        return self._tap(q, k, v)

    def query_keys(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Queries and keys alone; `v` is a stand-in without columns."""
        q, k = self._rows(x, 0, 2)
        return self._tap(q, k, q[..., :0])

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, d]`."""
        return self._rows(x, 2, 3)[0]

    def _tap(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tap:
        return Tap(q, k, v, (self.attention_width // self.heads) ** -0.5)

    def _rows(self, x: torch.Tensor, first: int, last: int) -> list[torch.Tensor]:
        """Some of q, k, v (0, 1, 2), each `[B, H, N, d]`."""
        attention, width = self.block.self_attention, self.attention_width
        rows = slice(first * width, last * width)
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias[rows]
        out = F.linear(self.block.ln_1(x), attention.in_proj_weight[rows], bias)
        return [heads_first(part, self.heads) for part in out.chunk(last - first, dim=-1)]

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """Projection and residual."""
        out: torch.Tensor = x + self.block.self_attention.out_proj(heads_last(attended))
        return out

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`."""
        out: torch.Tensor = x + self.block.mlp(self.block.ln_2(x))
        return out


class TvHead(nn.Module):
    """Final norm of the class token, and the classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, N, C]` → `[B, classes]`."""
        out: torch.Tensor = self.model.heads(self.model.encoder.ln(x[:, 0]))
        return out

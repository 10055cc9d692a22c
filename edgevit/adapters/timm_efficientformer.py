"""timm's EfficientFormer (version 1): reduction in the attention blocks at the end of its last stage.

All stages before, and the pooling blocks of the last one, are convolutions on a map and belong to the stem. The
attention adds a learned bias for the (absolute) offset between two tokens, as in LeViT, so positions travel with the
tokens. The mean at the end is weighted by token size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.adapters.block import Block, heads_last, linear_macs
from edgevit.adapters.known import check_children, check_eval, check_methods, check_part
from edgevit.adapters.pooling import weighted_mean
from edgevit.adapters.timm_levit import offset_bias, split
from edgevit.errors import UnsupportedModel
from edgevit.stages import Stage, Tap, VitModel
from edgevit.tokens.lowering import table_pairs

if TYPE_CHECKING:
    from timm.models.efficientformer import EfficientFormer

    from edgevit.tokens.protocol import Tokens

MODEL_CHILDREN = {"stem", "stages", "norm", "head_drop", "head", "head_dist"}
STAGE_CHILDREN = {"downsample", "blocks"}
BLOCK_CHILDREN = {"norm1", "token_mixer", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
ATTENTION_CHILDREN = {"qkv", "proj"}
MODEL_METHODS = ("forward", "forward_features", "forward_head")


def adapt(module: nn.Module) -> VitModel | None:
    """Take a timm EfficientFormer apart; None for anything else."""
    try:
        from timm.models.efficientformer import EfficientFormer, MetaBlock1d
    except ModuleNotFoundError:
        return None  # without timm there can be no timm model
    if not isinstance(module, EfficientFormer):
        return None
    _check_model(module)
    last: Any = module.stages[-1]
    blocks = [block for block in last.blocks if isinstance(block, MetaBlock1d)]
    if not blocks:
        raise UnsupportedModel(
            f"{type(module).__name__} has no attention block, so no block can reduce; it exports dense (drop --reduce)"
        )
    side = math.isqrt(blocks[0].token_mixer.attention_biases.shape[1])  # timm builds square ones alone
    stride = module.stem.stride * math.prod(_stride(stage) for stage in module.stages)
    return VitModel(
        module=module,
        family="timm EfficientFormer",
        stem=nn.Sequential(module.stem, *list(module.stages)[:-1], last.downsample, *list(last.blocks)[: -len(blocks)]),
        stages=(
            Stage(tuple(EfficientBlock(block) for block in blocks), 0, (side, side), restores=module.global_pool == ""),
        ),
        head=EfficientHead(module),
        class_token=False,
        image_size=(side * stride, side * stride),
        pooling=module.global_pool or "none",
        positional=True,
    )


def _stride(stage: Any) -> int:
    return 1 if isinstance(stage.downsample, nn.Identity) else int(stage.downsample.conv.stride[0])


def _check_model(model: EfficientFormer) -> None:
    from timm.models import efficientformer

    name = type(model).__name__
    check_methods(model, MODEL_METHODS, efficientformer.EfficientFormer)
    check_children(name, model, MODEL_CHILDREN)
    check_eval(model)
    for i, stage in enumerate(model.stages):
        part: Any = stage
        check_part(f"stages.{i}", part, STAGE_CHILDREN, efficientformer.EfficientFormerStage)
        for j, block in enumerate(part.blocks):
            where = f"stages.{i}.blocks.{j}"
            kinds = (efficientformer.MetaBlock1d, efficientformer.MetaBlock2d, efficientformer.Flat)
            check_part(where, block, BLOCK_CHILDREN, *kinds)
            if isinstance(block, efficientformer.MetaBlock1d):
                check_part(f"{where}.token_mixer", block.token_mixer, ATTENTION_CHILDREN, efficientformer.Attention)


class EfficientBlock(Block):
    """timm's `MetaBlock1d`, in parts."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block: Any = block
        attention = block.token_mixer
        self.attention_width: int = (attention.key_attn_dim + attention.val_attn_dim) // 2
        self.macs_per_token = (linear_macs(attention), linear_macs(block.mlp))

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """The bias of each pair of tokens is looked up by where they stand."""
        attention = self.block.token_mixer
        key, value = attention.key_dim, attention.val_dim
        q, k, v = split(attention.qkv(self.block.norm1(x)), attention.num_heads, key, key, value)
        return Tap(q, k, v, attention.scale, bias=table_pairs(offset_bias(attention), tokens.place))

    def query_keys(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Queries and keys alone; `v` is a stand-in without columns."""
        attention = self.block.token_mixer
        key = attention.key_dim
        q, k = split(self._part(x, 0, 2 * key), attention.num_heads, key, key)
        return Tap(q, k, q[..., :0], attention.scale, bias=table_pairs(offset_bias(attention), tokens.place))

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, dv]`."""
        attention = self.block.token_mixer
        return split(self._part(x, 2 * attention.key_dim, None), attention.num_heads, attention.val_dim)[0]

    def _part(self, x: torch.Tensor, first: int, last: int | None) -> torch.Tensor:
        """Some columns of each head."""
        attention = self.block.token_mixer

        def rows(values: torch.Tensor) -> torch.Tensor:
            return values.reshape(attention.num_heads, -1, *values.shape[1:])[:, first:last].flatten(0, 1)

        return F.linear(self.block.norm1(x), rows(attention.qkv.weight), rows(attention.qkv.bias))

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """Projection, layer scale, residual."""
        out: torch.Tensor = x + self.block.ls1(self.block.token_mixer.proj(heads_last(attended)))
        return out

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`."""
        out: torch.Tensor = x + self.block.ls2(self.block.mlp(self.block.norm2(x)))
        return out


class EfficientHead(nn.Module):
    """Final norm, mean over tokens weighted by their sizes, and the two classifiers."""

    def __init__(self, model: EfficientFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, M, C]`, sizes `[B, M]` or None → what the model returns."""
        x = self.model.norm(x)
        if size is not None:  # then the model pools: without pooling all tokens are back, and without sizes
            x = weighted_mean(x, size).unsqueeze(1)  # [B, 1, C]: its own mean is x
        out: torch.Tensor = self.model.forward_head(x)
        return out

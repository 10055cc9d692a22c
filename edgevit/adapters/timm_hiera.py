"""timm's Hiera for images: reduction in the blocks that attend to the whole map and do not pool.

Blocks that attend inside mask units, or pool their queries, need the model's unrolled order of all tokens; they run as
they are, in front of a stage or behind the last one. A stage's own tokens lie row by row: blocks with global attention
do not mind the order, and methods that read the grid do. Schedules count the blocks that can reduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.adapters.block import Block, heads_first, heads_last, linear_macs
from edgevit.adapters.known import check_children, check_eval, check_methods, check_part, check_type
from edgevit.adapters.pooling import weighted_mean
from edgevit.errors import UnsupportedModel
from edgevit.stages import Stage, Tap, VitModel

if TYPE_CHECKING:
    from timm.models.hiera import Hiera

    from edgevit.tokens.protocol import Tokens

MODEL_CHILDREN = {"patch_embed", "unroll", "reroll", "blocks", "head"}
BLOCK_CHILDREN = {"norm1", "proj", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
ATTENTION_CHILDREN = {"qkv", "proj"}
MODEL_METHODS = ("forward", "forward_features", "forward_head", "_pos_embed")


def adapt(module: nn.Module) -> VitModel | None:
    """Take a timm Hiera apart; None for anything else."""
    try:
        from timm.models.hiera import Hiera
    except ModuleNotFoundError:
        return None  # without timm there can be no timm model
    if not isinstance(module, Hiera):
        return None
    _check_model(module)
    stages, after = _stages(module)
    height, width = (n * s for n, s in zip(module.tokens_spatial_shape, module.patch_stride, strict=True))
    return VitModel(
        module=module,
        family="timm Hiera",
        stem=HieraStem(module),
        stages=stages,
        head=HieraHead(module, after),
        class_token=False,
        image_size=(height, width),
        pooling=module.head.pool_type or "none",
    )


def _reducible(block: Any) -> bool:
    """Global attention, as many tokens out as in, and of the same width."""
    return not block.attn.use_mask_unit_attn and block.attn.q_stride == 1 and not block.do_expand


def _stages(model: Hiera) -> tuple[tuple[Stage, ...], Sequence[nn.Module]]:
    """Runs of reducible blocks, with what stands between them; and the blocks behind the last run."""
    blocks: list[Any] = list(model.blocks)
    able = [_reducible(block) for block in blocks]
    first = [i for i, now in enumerate(able) if now and not (i and able[i - 1])]
    if not first:
        raise UnsupportedModel(
            f"{type(model).__name__} has no block with global attention that does not pool, so no block can reduce; it "
            "exports dense (drop --reduce)"
        )
    stages, end = [], 0
    for start in first:
        before = blocks[end:start]
        end = next((i for i in range(start, len(blocks)) if not able[i]), len(blocks))
        down, across = model.reroll.schedule[start][1]
        last = end == len(blocks)
        stages.append(
            Stage(
                blocks=tuple(HieraBlock(block) for block in blocks[start:end]),
                prefix=0,
                grid=(down, across),
                restores=not last or not model.head.pool_type,
                enter=HieraEnter(model, before, start),
                leave=None if last and model.head.pool_type else HieraLeave(model, start),
            )
        )
    return tuple(stages), blocks[end:]


def _check_model(model: Hiera) -> None:
    from timm.layers.classifier import ClNormMlpClassifierHead
    from timm.models import hiera

    name = type(model).__name__
    check_methods(model, MODEL_METHODS, hiera.Hiera)
    check_children(name, model, MODEL_CHILDREN)
    check_eval(model)
    if len(model.patch_stride) != 2:
        raise UnsupportedModel(f"{name} takes inputs of {len(model.patch_stride)} dimensions; this adapter runs images")
    check_type("head", model.head, ClNormMlpClassifierHead)
    check_type("unroll", model.unroll, hiera.Unroll)
    check_type("reroll", model.reroll, hiera.Reroll)
    for index, block in enumerate(model.blocks):
        where = f"blocks.{index}"
        check_part(where, block, BLOCK_CHILDREN, hiera.HieraBlock)
        check_part(f"{where}.attn", block.attn, ATTENTION_CHILDREN, hiera.MaskUnitAttention)


class HieraStem(nn.Module):
    """Images `[B, 3, H, W]` → tokens `[B, N, C]` in unrolled order, positions added."""

    def __init__(self, model: Hiera) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Patch embedding with overlap, positions, order."""
        out: torch.Tensor = self.model.unroll(self.model._pos_embed(self.model.patch_embed(images)))
        return out


class HieraEnter(nn.Module):
    """Unrolled tokens → blocks that cannot reduce → tokens row by row."""

    def __init__(self, model: Hiera, before: Sequence[nn.Module], block: int) -> None:
        super().__init__()
        self.before = nn.ModuleList(before)
        self.reroll, self.index = model.reroll, block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N, C]` → `[B, h * w, C']`."""
        for block in self.before:
            x = block(x)
        out: torch.Tensor = self.reroll(x, self.index).flatten(1, 2)
        return out


class HieraLeave(nn.Module):
    """Tokens row by row → unrolled, as the next block wants them."""

    def __init__(self, model: Hiera, block: int) -> None:
        super().__init__()
        strides, size = model.reroll.schedule[block]
        self.unroll = type(model.unroll)(tuple(size), (1, 1), strides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N, C]` → `[B, N, C]`."""
        out: torch.Tensor = self.unroll(x)
        return out


class HieraBlock(Block):
    """timm's `HieraBlock` with global attention and without pooling, in parts."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block: Any = block
        attention = block.attn
        self.attention_width: int = attention.heads * attention.head_dim
        self.macs_per_token = (linear_macs(attention), linear_macs(block.mlp))

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Positions are in the stream already."""
        q, k, v = self._part(x, 0, 3)
        return Tap(q, k, v, self.block.attn.scale)

    def query_keys(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Queries and keys alone; `v` is a stand-in without columns."""
        q, k = self._part(x, 0, 2)
        return Tap(q, k, q[..., :0], self.block.attn.scale)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, d]`."""
        return self._part(x, 2, 3)[0]

    def _part(self, x: torch.Tensor, first: int, last: int) -> tuple[torch.Tensor, ...]:
        """Some of queries, keys and values: `[B, N, C]` → `[B, H, N, d]` each."""
        attention, width = self.block.attn, self.attention_width
        rows = slice(first * width, last * width)
        parts = F.linear(self.block.norm1(x), attention.qkv.weight[rows], attention.qkv.bias[rows])
        return tuple(heads_first(part, attention.heads) for part in torch.split(parts, width, dim=-1))

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """Projection, layer scale (where there is one), residual."""
        out: torch.Tensor = x + self.block.ls1(self.block.attn.proj(heads_last(attended)))
        return out

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`."""
        out: torch.Tensor = x + self.block.ls2(self.block.mlp(self.block.norm2(x)))
        return out


class HieraHead(nn.Module):
    """Blocks behind the last stage, pooling, norm and classifier; means over tokens are weighted by size."""

    def __init__(self, model: Hiera, after: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model: Any = model
        self.after = nn.ModuleList(after)

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, M, C]`, sizes `[B, M]` or None → what the model returns."""
        for block in self.after:
            x = block(x)
        pooling = self.model.head.pool_type
        if size is not None and pooling in ("avg", "avgmax"):
            mean = weighted_mean(x, size).unsqueeze(1)  # [B, 1, C]
            x = mean if pooling == "avg" else 0.5 * (x.amax(dim=1, keepdim=True) + mean)  # pooled: the head's is x
        out: torch.Tensor = self.model.forward_head(x)
        return out

"""timm's Levit and LevitDistilled, as linear layers or as 1x1 convolutions: attention between subsampling blocks.

Keys are narrower than values, norms are batch norms behind the linear layers, and every block adds a learned bias for
the (absolute) offset between two tokens, so positions travel with the tokens. A subsampling block needs the map: all
tokens come back at a stage's end. The last stage ends in a mean, which is weighted by token size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.adapters.block import Block, heads_last
from edgevit.adapters.known import check_children, check_eval, check_methods, check_part, check_type
from edgevit.adapters.pooling import weighted_mean
from edgevit.errors import UnsupportedModel
from edgevit.stages import Stage, Tap, VitModel
from edgevit.tokens.lowering import table_pairs

if TYPE_CHECKING:
    from timm.models.levit import Levit

    from edgevit.tokens.protocol import Tokens

MODEL_CHILDREN = {"stem", "stages", "head", "head_dist"}
STAGE_CHILDREN = {"downsample", "blocks"}
DOWN_CHILDREN = {"attn_downsample", "mlp", "drop_path"}
BLOCK_CHILDREN = {"attn", "drop_path1", "mlp", "drop_path2"}
ATTENTION_CHILDREN = {"qkv", "kv", "q", "proj"}
MLP_CHILDREN = {"ln1", "act", "drop", "ln2"}
MODEL_METHODS = ("forward", "forward_features", "forward_head")


def adapt(module: nn.Module) -> VitModel | None:
    """Take a timm Levit apart; None for anything else."""
    try:
        from timm.models.levit import Levit
    except ModuleNotFoundError:
        return None  # without timm there can be no timm model
    if not isinstance(module, Levit):
        return None
    _check_model(module)
    stages = tuple(_stages(module))
    stride = module.stem.stride
    return VitModel(
        module=module,
        family="timm Levit",
        stem=LevitStem(module),
        stages=stages,
        head=LevitHead(module, stages[-1].grid),
        class_token=False,
        image_size=(stages[0].grid[0] * stride, stages[0].grid[1] * stride),
        pooling=module.global_pool or "none",
        positional=True,
    )


def _stages(model: Levit) -> list[Stage]:
    stages = []
    last: Any = model.stages[-1]
    for stage in model.stages:
        part: Any = stage
        grid = tuple(part.blocks[0].attn.resolution)
        down = None if isinstance(part.downsample, nn.Identity) else Subsample(part.downsample)
        stages.append(
            Stage(
                blocks=tuple(LevitBlock(block) for block in part.blocks),
                prefix=0,
                grid=(grid[0], grid[1]),
                restores=part is not last or model.global_pool == "",
                enter=down,
            )
        )
    return stages


def _check_model(model: Any) -> None:
    from timm.models import levit

    name = type(model).__name__
    check_methods(model, MODEL_METHODS, levit.Levit, levit.LevitDistilled)
    check_children(name, model, MODEL_CHILDREN)
    check_eval(model)
    check_type("stem", model.stem, levit.Stem8, levit.Stem16)
    for i, stage in enumerate(model.stages):
        check_part(f"stages.{i}", stage, STAGE_CHILDREN, levit.LevitStage)
        if not len(stage.blocks):
            raise UnsupportedModel(f"stages.{i} has no blocks; this adapter reads the size of the map from them")
        if not isinstance(stage.downsample, nn.Identity):
            where = f"stages.{i}.downsample"
            check_part(where, stage.downsample, DOWN_CHILDREN, levit.LevitDownsample)
            _check_parts(where, stage.downsample.attn_downsample, levit.AttentionDownsample, stage.downsample.mlp)
        for j, block in enumerate(stage.blocks):
            where = f"stages.{i}.blocks.{j}"
            check_part(where, block, BLOCK_CHILDREN, levit.LevitBlock)
            _check_parts(where, block.attn, levit.Attention, block.mlp)


def _check_parts(where: str, attention: nn.Module, kind: type, mlp: nn.Module) -> None:
    from timm.models.levit import LevitMlp

    check_part(f"{where} attention", attention, ATTENTION_CHILDREN, kind)
    check_part(f"{where}.mlp", mlp, MLP_CHILDREN, LevitMlp)


def pointwise(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """A linear layer or 1x1 convolution with its batch norm, alone or in a row, on tokens `[B, N, C]`."""
    if any(isinstance(m, nn.Conv2d) for m in layer.modules()):
        x = x.transpose(1, 2).unsqueeze(-1)  # [B, C, N, 1]: tokens are the height of a map
        return layer(x).squeeze(-1).transpose(1, 2)  # type: ignore[no-any-return]
    out: torch.Tensor = layer(x)
    return out


def layer_macs(module: nn.Module) -> int:
    """Multiply-accumulates of one token through every linear layer and 1x1 convolution below a module."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d))


def offset_bias(attention: Any) -> torch.Tensor:
    """`[H, queries, keys]`: the learned bias of each pair's offset.

    timm's own look-up keeps a cache, which a trace would fill with a tensor that has no values.
    """
    index = attention.attention_bias_idxs
    bias: torch.Tensor = attention.attention_biases.index_select(1, index.reshape(-1))
    return bias.reshape(-1, *index.shape)


class LevitStem(nn.Module):
    """Images `[B, 3, H, W]` → tokens `[B, h * w, C]`: strided convolutions."""

    def __init__(self, model: Levit) -> None:
        super().__init__()
        self.stem = model.stem

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Row by row."""
        out: torch.Tensor = self.stem(images).flatten(2).transpose(1, 2)
        return out


class Subsample(nn.Module):
    """timm's `LevitDownsample`: the queries of every second token in both directions attend to all."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part: Any = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h * w, C]` → `[B, h' * w', C']`."""
        attention = self.part.attn_downsample
        key, value = attention.key_dim, attention.val_dim
        k, v = split(pointwise(attention.kv, x), attention.num_heads, key, value)
        q = pointwise(attention.q.ln, self._fewer(x))
        q = q.reshape(len(x), -1, attention.num_heads, key).transpose(1, 2)
        bias = offset_bias(attention).unsqueeze(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=attention.scale)
        x = pointwise(attention.proj, heads_last(out))
        return x + pointwise(self.part.mlp, x)

    def _fewer(self, x: torch.Tensor) -> torch.Tensor:
        """Every second row and column, by the model's own pooling."""
        attention = self.part.attn_downsample
        if not attention.use_conv:
            out: torch.Tensor = attention.q.down(x)
            return out
        image = x.transpose(1, 2).reshape(len(x), -1, *attention.resolution)
        pooled: torch.Tensor = attention.q.down(image)
        return pooled.flatten(2).transpose(1, 2)


def split(x: torch.Tensor, heads: int, *widths: int) -> tuple[torch.Tensor, ...]:
    """`[B, N, H * (a + b + ...)]` → `[B, H, N, a]`, `[B, H, N, b]`, ...: each head's parts lie side by side."""
    batch, count, _ = x.shape
    return torch.split(x.reshape(batch, count, heads, sum(widths)).transpose(1, 2), list(widths), dim=-1)


class LevitBlock(Block):
    """timm's `LevitBlock`, in parts."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block: Any = block
        attention = block.attn
        self.attention_width: int = (attention.key_attn_dim + attention.val_attn_dim) // 2
        self.macs_per_token = (layer_macs(attention), layer_macs(block.mlp))

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """The bias of each pair of tokens is looked up by where they stand."""
        attention = self.block.attn
        key = attention.key_dim
        q, k, v = split(pointwise(attention.qkv, x), attention.num_heads, key, key, attention.val_dim)
        return Tap(q, k, v, attention.scale, bias=table_pairs(offset_bias(attention), tokens.place))

    def query_keys(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Queries and keys alone; `v` is a stand-in without columns."""
        attention = self.block.attn
        key = attention.key_dim
        q, k = split(self._part(x, 0, 2 * key), attention.num_heads, key, key)
        return Tap(q, k, q[..., :0], attention.scale, bias=table_pairs(offset_bias(attention), tokens.place))

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, dv]`."""
        attention = self.block.attn
        return split(self._part(x, 2 * attention.key_dim, None), attention.num_heads, attention.val_dim)[0]

    def _part(self, x: torch.Tensor, first: int, last: int | None) -> torch.Tensor:
        """Some columns of each head, with the batch norm as scale and shift."""
        attention = self.block.attn
        layer, norm = attention.qkv.linear, attention.qkv.bn

        def rows(values: torch.Tensor) -> torch.Tensor:
            return values.reshape(attention.num_heads, -1, *values.shape[1:])[:, first:last].flatten(0, 1)

        gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * gain
        return F.linear(x, rows(layer.weight.flatten(1))) * rows(gain) + rows(shift)

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """Activation, projection, residual."""
        return x + pointwise(self.block.attn.proj, heads_last(attended))

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`."""
        return x + pointwise(self.block.mlp, x)


class LevitHead(nn.Module):
    """Mean over tokens, weighted by their sizes, and the classifier(s)."""

    def __init__(self, model: Levit, grid: tuple[int, int]) -> None:
        super().__init__()
        self.model: Any = model
        self.grid = grid

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, M, C]`, sizes `[B, M]` or None → what the model returns."""
        if size is not None:  # then the model pools: without pooling all tokens are back, and without sizes
            x = weighted_mean(x, size).unsqueeze(1)  # [B, 1, C]: its own mean is x
        if self.model.use_conv:
            x = x.transpose(1, 2)
            x = x.unsqueeze(-1) if self.model.global_pool else x.reshape(*x.shape[:2], *self.grid)
        out: torch.Tensor = self.model.forward_head(x)
        return out

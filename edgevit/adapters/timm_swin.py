"""timm's SwinTransformer and SwinTransformerV2: every block is a stage of its own, reduced alike in each window.

A block's tokens are the `w * w` of one window, `[B * windows, w * w, C]`. They shrink behind the attention residual, so
the feed-forward sees fewer, and all come back at the block's end: the next block cuts its windows elsewhere. Grids that
the window does not divide (timm pads them) and changing image sizes are refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.adapters.block import Block, heads_first, heads_last, linear_macs
from edgevit.adapters.known import check_children, check_eval, check_methods, check_part, check_type
from edgevit.errors import UnsupportedModel
from edgevit.stages import Stage, Tap, VitModel

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Tokens

MODEL_CHILDREN = {"patch_embed", "layers", "norm", "head"}
STAGE_CHILDREN = {"downsample", "blocks"}
BLOCK_CHILDREN = {"norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"}
ATTENTION_CHILDREN = {"qkv", "cpb_mlp", "attn_drop", "proj", "proj_drop", "softmax"}
MODEL_METHODS = ("forward", "forward_features", "forward_head")
MAX_LOGIT_SCALE = 4.605170185988092  # log(100), the limit that version 2 puts on its learned logit scale


def adapt(module: nn.Module) -> VitModel | None:
    """Take a timm Swin Transformer apart; None for anything else."""
    try:
        from timm.models import swin_transformer, swin_transformer_v2
    except ModuleNotFoundError:
        return None  # without timm there can be no timm model
    model: Any = module
    if isinstance(module, swin_transformer.SwinTransformer):
        library, known = swin_transformer, "SwinTransformer"
    elif isinstance(module, swin_transformer_v2.SwinTransformerV2):
        library, known = swin_transformer_v2, "SwinTransformerV2"
    else:
        return None
    _check_model(model, library, known)
    return VitModel(
        module=module,
        family=f"timm {known}",
        stem=model.patch_embed,
        stages=tuple(_stages(model)),
        head=SwinHead(model),
        class_token=False,
        image_size=tuple(model.patch_embed.img_size),
        pooling=model.head.global_pool.pool_type or "none",
    )


def _stages(model: Any) -> list[Stage]:
    """One per block; what halves the map stands in front of the first block behind it."""
    stages = []
    for layer in model.layers:
        before: nn.Module | None = None if isinstance(layer.downsample, nn.Identity) else layer.downsample
        for block in layer.blocks:
            windows = Windows(block.input_resolution, block.window_size, block.shift_size)
            stages.append(
                Stage(
                    blocks=(SwinBlock(block, cosine=hasattr(block.attn, "cpb_mlp")),),
                    prefix=0,
                    grid=tuple(block.window_size),
                    groups=windows.count,
                    restores=True,
                    enter=Partition(windows, before),
                    leave=Unpartition(windows),
                )
            )
            before = None
    return stages


def _check_model(model: Any, library: Any, known: str) -> None:
    """library: timm's module of this version; its classes have the same roles under other names."""
    name = type(model).__name__
    check_methods(model, MODEL_METHODS, getattr(library, known))
    check_children(name, model, MODEL_CHILDREN)
    check_eval(model)
    if model.dynamic_img_size:
        raise UnsupportedModel(f"{name} has dynamic_img_size=True; build it with a fixed img_size")
    for i, layer in enumerate(model.layers):
        check_part(f"layers.{i}", layer, STAGE_CHILDREN, getattr(library, f"{known}Stage"))
        check_type(f"layers.{i}.downsample", layer.downsample, library.PatchMerging, nn.Identity)
        for j, block in enumerate(layer.blocks):
            where = f"layers.{i}.blocks.{j}"
            check_part(where, block, BLOCK_CHILDREN, getattr(library, f"{known}Block"))
            check_part(f"{where}.attn", block.attn, ATTENTION_CHILDREN, library.WindowAttention)
            _check_windows(where, block)


def _check_windows(where: str, block: Any) -> None:
    (height, width), (down, across) = block.input_resolution, block.window_size
    if height % down or width % across:
        raise UnsupportedModel(
            f"{where} pads its {height}x{width} map to whole windows of {down}x{across}, and padding would merge with "
            "tokens; use an image size whose maps the window divides"
        )


class Windows:
    """How a map `[B, h, w, C]` is cut, after a cyclic shift: sizes alone."""

    def __init__(self, resolution: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> None:
        self.window, self.shift = tuple(window), tuple(shift)
        self.across = (resolution[0] // window[0], resolution[1] // window[1])
        self.count = self.across[0] * self.across[1]


class Partition(nn.Module):
    """Map `[B, h, w, C]` → tokens `[B * windows, w * w, C]`; what halves the map first, then the shift."""

    def __init__(self, windows: Windows, before: nn.Module | None) -> None:
        super().__init__()
        self.windows, self.before = windows, before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Windows of one image lie behind one another, row by row."""
        if self.before is not None:
            x = self.before(x)
        cut = self.windows
        if any(cut.shift):
            x = torch.roll(x, (-cut.shift[0], -cut.shift[1]), dims=(1, 2))
        batch, width = x.shape[0], x.shape[3]
        x = x.reshape(batch, cut.across[0], cut.window[0], cut.across[1], cut.window[1], width)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(batch * cut.count, cut.window[0] * cut.window[1], width)


class Unpartition(nn.Module):
    """Tokens `[B * windows, w * w, C]` → map `[B, h, w, C]`, shifted back."""

    def __init__(self, windows: Windows) -> None:
        super().__init__()
        self.windows = windows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The reverse of Partition, without what halved the map."""
        cut, width = self.windows, x.shape[2]
        batch = x.shape[0] // cut.count
        x = x.reshape(batch, *cut.across, *cut.window, width).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, cut.across[0] * cut.window[0], cut.across[1] * cut.window[1], width)
        return torch.roll(x, cut.shift, dims=(1, 2)) if any(cut.shift) else x


class SwinBlock(Block):
    """timm's Swin block on the tokens of single windows. cosine: version 2, with its norms behind the residual parts.

    A block's attention always sees whole windows, so positions need not travel.
    """

    def __init__(self, block: Any, cosine: bool) -> None:
        super().__init__()
        self.block: Any = block
        self.cosine = cosine
        attention = block.attn
        self.attention_width: int = attention.qkv.out_features // 3
        self.macs_per_token = (linear_macs(attention.qkv) + linear_macs(attention.proj), linear_macs(block.mlp))

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """All tokens of each window, with the bias of their relative positions and of the shift."""
        q, k, v = self._part(x, 0, 3)
        return self._tap(q, k, v)

    def query_keys(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Queries and keys alone; `v` is a stand-in without columns."""
        q, k = self._part(x, 0, 2)
        return self._tap(q, k, q[..., :0])

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, d]`."""
        return self._part(x, 2, 3)[0]

    def _tap(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tap:
        attention = self.block.attn
        if not self.cosine:
            return Tap(q, k, v, attention.scale, bias=self._bias(len(q)))
        scale = attention.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()  # [H, 1, 1]
        return Tap(F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1), v, 1.0, bias=self._bias(len(q)))

    def _part(self, x: torch.Tensor, first: int, last: int) -> tuple[torch.Tensor, ...]:
        """Some of queries, keys and values: `[B, N, C]` → `[B, H, N, d]` each."""
        attention, width = self.block.attn, self.attention_width
        rows = slice(first * width, last * width)
        bias = attention.qkv.bias
        if self.cosine and attention.q_bias is not None:
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        normed = x if self.cosine else self.block.norm1(x)
        parts = F.linear(normed, attention.qkv.weight[rows], None if bias is None else bias[rows])
        return tuple(heads_first(part, attention.num_heads) for part in torch.split(parts, width, dim=-1))

    def _bias(self, batch: int) -> torch.Tensor:
        """`[1, H, N, N]`, or `[B * windows, H, N, N]` where a shift brought far parts of the map together."""
        attention, mask = self.block.attn, self.block.attn_mask
        if self.cosine:
            table = attention.cpb_mlp(attention.relative_coords_table).reshape(-1, attention.num_heads)
        else:
            table = attention.relative_position_bias_table
        index = attention.relative_position_index  # [N, N] into the table's rows
        pairs = table.index_select(0, index.reshape(-1)).reshape(*index.shape, -1)
        bias: torch.Tensor = pairs.permute(2, 0, 1).unsqueeze(0)
        if self.cosine:
            bias = 16 * bias.sigmoid()
        if mask is None:
            return bias.contiguous()
        bias = bias + mask.unsqueeze(1)  # [windows, H, N, N]
        tiled: torch.Tensor = bias.repeat(batch // len(mask), 1, 1, 1)
        return tiled

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """Projection and residual; version 2 normalizes in between."""
        out = self.block.attn.proj(heads_last(attended))
        result: torch.Tensor = x + (self.block.norm1(out) if self.cosine else out)
        return result

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`."""
        block = self.block
        out: torch.Tensor = x + (block.norm2(block.mlp(x)) if self.cosine else block.mlp(block.norm2(x)))
        return out


class SwinHead(nn.Module):
    """Final norm, pooling and classifier, on the whole map."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Map `[B, h, w, C]` → what the model returns; every token is back, so no sizes."""
        out: torch.Tensor = self.model.forward_head(self.model.norm(x))
        return out

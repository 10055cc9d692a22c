"""LookupViT: a few compressed tokens take the heavy blocks, the full grid is looked up and updated cheaply.

Koner et al., "LookupViT: Compressing visual information to a limited number of tokens", ECCV 2024 (arXiv:2407.12753),
section 3; written from its description.

    l = embedded patches [B, N, C],   p = l resized bilinearly from the h x w to the m x m grid [B, M, C]
    A = softmax(q(LN p) · k(LN l)ᵀ / sqrt d)    p ← p + proj(A v(LN l))    p reads the lookup tokens
    p ← a ViT block on p                                                    timm's own
    l ← l + proj'(Aᵀ v'(LN p))                  l ← l + MLP'(LN l)          A transposed: no second softmax
    logits = head(mean over p)

No weight depends on the compressed grid, so one trained set serves every grid: it is chosen at build (`compressed`).
The last block's lookup update would be read by nobody and does not exist here.

Ours, because neither official code nor a key list exists: the names `exchanges.{block}.*`, the hidden width C/2 of the
light MLP', the pooling over the compressed tokens alone, and that Aᵀ is used as it is (its rows do not sum to one).
The backbone is timm's plain ViT without a class token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.errors import LoadError, ScheduleError
from edgevit.trained.base import Trained, build_backbone
from edgevit.trained.cross import Cross
from edgevit.trained.rebuild import Architecture

if TYPE_CHECKING:
    from edgevit.tokens.lowering import Lowering
    from edgevit.tokens.schedule import TokenSchedule


def resize_matrix(grid: tuple[int, int], compressed: tuple[int, int]) -> torch.Tensor:
    """Bilinear resizing of an h x w grid as a constant `[M, N]`: one product, where a Resize is rare or differs."""
    count = grid[0] * grid[1]
    basis = torch.eye(count).reshape(count, 1, *grid)
    return F.interpolate(basis, compressed, mode="bilinear", align_corners=False).reshape(count, -1).T.contiguous()


class Infuse(nn.Module):
    """The way back: lookup tokens read the compressed ones through the attention that already exists."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.v, self.proj = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.norm_light = nn.LayerNorm(width)
        self.light = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width))

    def forward(self, lookup: torch.Tensor, compressed: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """`[B, N, C]`, `[B, M, C]`, `[B, H, M, N]` → `[B, N, C]`."""
        batch, count, width = compressed.shape
        values = self.v(self.norm(compressed)).reshape(batch, count, self.heads, width // self.heads).transpose(1, 2)
        mixed = (attention.transpose(2, 3) @ values).transpose(1, 2).reshape(lookup.shape)
        lookup = lookup + self.proj(mixed)
        out: torch.Tensor = lookup + self.light(self.norm_light(lookup))
        return out


class Exchange(nn.Module):
    """What one LookupViT block adds to a ViT block: reading from the lookup tokens and, but in the last, writing."""

    def __init__(self, width: int, heads: int, last: bool) -> None:
        super().__init__()
        self.norm_compressed, self.norm_lookup = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross = Cross(width, heads)
        self.infuse = None if last else Infuse(width, heads)

    def gather(self, compressed: torch.Tensor, lookup: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, M, C]`, `[B, N, C]` → compressed `[B, M, C]` and the attention `[B, H, M, N]`."""
        context = self.norm_lookup(lookup)
        attention = self.cross.logits(self.norm_compressed(compressed), context).softmax(dim=-1)
        return compressed + self.cross.mix(attention, context), attention


class LookupVit(Trained):
    """Images `[B, 3, H, W]` → `[B, classes]`."""

    method: ClassVar[str] = "lookupvit"
    resize: torch.Tensor

    def __init__(self, backbone: Any, exchanges: Sequence[nn.Module], compressed: tuple[int, int]) -> None:
        super().__init__(backbone)
        self.exchanges = nn.ModuleList(exchanges)
        self.register_buffer("resize", resize_matrix(backbone.patch_embed.grid_size, compressed), persistent=False)
        self.tokens = (compressed[0] * compressed[1],) * len(exchanges)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Each block: gather, a ViT block on the compressed tokens, infuse."""
        lookup = self.embed(images)
        compressed = self.resize @ lookup  # positions are resized with the patches: resizing is linear
        for block, exchange in zip(self.backbone.blocks, self.exchanges, strict=True):
            assert isinstance(exchange, Exchange)
            compressed, attention = exchange.gather(compressed, lookup)
            compressed = block(compressed)
            if exchange.infuse is not None:
                lookup = exchange.infuse(lookup, compressed, attention)
        return self.classify(compressed)


def create(
    name: str,
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    *,
    compressed: tuple[int, int] = (7, 7),
    options: Mapping[str, Any] | None = None,
) -> LookupVit:
    """A LookupViT on timm's `name` with random weights.

    compressed: rows and columns of the compressed grid; any trained resolution of the same weights. Raises LoadError.
    """
    plain = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    backbone = build_backbone(name, num_classes, input_size, {**plain, **(options or {})})
    grid = backbone.patch_embed.grid_size
    if backbone.num_prefix_tokens:
        raise LoadError(f"lookupvit: timm:{name} has {backbone.num_prefix_tokens} prefix tokens; it must have none")
    wrong = grid_wrong(compressed, grid)
    if wrong:
        raise LoadError(f"lookupvit: {wrong}")
    depth, heads = len(backbone.blocks), backbone.blocks[0].attn.num_heads
    exchanges = [Exchange(backbone.embed_dim, heads, last=index == depth - 1) for index in range(depth)]
    return LookupVit(backbone, exchanges, (compressed[0], compressed[1])).eval()


def grid_wrong(compressed: Sequence[int], grid: Sequence[int]) -> str | None:
    """Why a compressed grid does not fit the grid of patches, or None."""
    if len(compressed) == 2 and all(1 <= c <= g for c, g in zip(compressed, grid, strict=True)):
        return None
    return f"compressed={tuple(compressed)} must be a grid of at most {tuple(grid)} tokens"


class LookupViTSchedule(Architecture):
    """`lookupvit:compressed=5`: a 5 x 5 compressed grid, with the same weights."""

    name: ClassVar[str] = "lookupvit"
    weights: ClassVar[str | None] = "lookupvit"
    keys: ClassVar[Mapping[str, str]] = {"compressed": "side of the compressed grid; 5/7: five rows, seven columns"}

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """A whole number."""
        return None if value == int(value) > 0 else f"{key}={value:g} must be a whole number, 1 or more"

    @staticmethod
    def check_together(key: str, amounts: Sequence[float], options: Mapping[str, str]) -> str | None:
        """One side, or rows and columns."""
        return f"{key}= takes one side, or rows/columns" if len(amounts) > 2 else None

    @classmethod
    def build(cls, module: Any, schedule: TokenSchedule, lowering: Lowering) -> LookupVit:
        """The same blocks on another grid."""
        compressed = (int(schedule.amounts[0]), int(schedule.amounts[-1]))
        wrong = grid_wrong(compressed, module.backbone.patch_embed.grid_size)
        if wrong:
            raise ScheduleError(f"{schedule}: {wrong}")
        return LookupVit(module.backbone, list(module.exchanges), compressed)

"""STViT-R: in stage 3 of a Swin, a few semantic tokens per window do the work; the grid is recovered from them.

Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View", CVPR 2023 (arXiv:2303.08685),
section 3; written from its description. Stage 3's blocks come in sixes:

    0  swin       timm's own block on the grid x [B, H, W, C]
    1  generate   q = adaptive max-pool of each w x w window to s x s, plus a depth-wise convolution for position;
                  s² queries per window read {themselves, a (w + 3)² patch of x around the window}
    2  generate   s ← s + a learned global start; all semantic tokens read {themselves, x}
    3  self       a ViT block on the semantic tokens
    4  self       the same
    5  recover    x reads the semantic tokens, so that stage 4 gets its grid back

Every attention has a pre-norm, a residual with LayerScale (1e-5 at the start of training) and an MLP behind it. With
w = 7 on a 14 x 14 grid the local patches are 10 x 10 at stride 4, as published; on other grids they are spread evenly
from edge to edge, which is ours. So is that blocks 2 to 5 see the tokens of the whole image.

Keys. Those of the plain Swin parts are the repository's: downsampling is renumbered and the classifier renamed to
timm's spelling, position indices and masks are computed (`own_key`). Those of the five other blocks are ours, as is the
shape of the learned start (one window's tokens, the same for every window): no key list of a checkpoint could be read.
A user's listing in the repository's issue 8 adds the start in the first six only; here every six has its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from edgevit.errors import LoadError, ScheduleError
from edgevit.trained.base import PREFIX, Trained, build_backbone
from edgevit.trained.cross import Cross
from edgevit.trained.rebuild import Architecture, one_amount

if TYPE_CHECKING:
    from edgevit.tokens.lowering import Lowering
    from edgevit.tokens.schedule import TokenSchedule

PATTERN = ("swin", "generate", "generate globally", "self", "self", "recover")
HALO = 3  # a window's local context is this much larger than the window
LAYER_SCALE = 1e-5


def bins(size: int, count: int) -> list[tuple[int, int]]:
    """Where adaptive pooling of `size` cells to `count` reads.

    >>> bins(7, 3)
    [(0, 3), (2, 5), (4, 7)]
    """
    return [(i * size // count, math.ceil((i + 1) * size / count)) for i in range(count)]


def pool_windows(x: torch.Tensor, window: tuple[int, int], count: int) -> torch.Tensor:
    """Grid `[B, H, W, C]` → largest values of count x count cells per window, `[B, H/w·count, W/w·count, C]`."""
    for axis, size in zip((1, 2), window, strict=True):
        starts = range(0, x.shape[axis], size)
        cells = [x.narrow(axis, s + a, b - a).amax(dim=axis) for s in starts for a, b in bins(size, count)]
        x = torch.stack(cells, dim=axis)
    return x


def local_context(x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """Grid `[B, H, W, C]` → the patch around each window, `[B · windows, patch, C]`; patches overlap."""
    batch, channels = x.shape[0], x.shape[3]
    for axis, size in zip((1, 3), window, strict=True):  # the second axis moves one back behind the first's two
        cells, windows = x.shape[axis], x.shape[axis] // size
        patch = min(size + HALO, cells)
        starts = [i * (cells - patch) // max(windows - 1, 1) for i in range(windows)]  # the last one ends at the edge
        x = torch.stack([x.narrow(axis, start, patch) for start in starts], dim=axis)
    x = x.transpose(2, 3)  # [B, nh, nw, patch h, patch w, C]
    return x.reshape(batch * x.shape[1] * x.shape[2], x.shape[3] * x.shape[4], channels)


def to_windows(grid: torch.Tensor, count: int) -> torch.Tensor:
    """Pooled grid `[B, nh·count, nw·count, C]` → `[B · windows, count², C]`, window after window."""
    batch, height, width, channels = grid.shape
    grid = grid.reshape(batch, height // count, count, width // count, count, channels).transpose(2, 3)
    return grid.reshape(-1, count * count, channels)


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and MLP: tokens `[B, M, C]` read a context `[B, N, C]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        from timm.layers import LayerScale, Mlp

        self.norm1, self.norm_context, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Cross(width, heads), Mlp(width, 4 * width)
        self.ls1, self.ls2 = LayerScale(width, LAYER_SCALE), LayerScale(width, LAYER_SCALE)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """`[B, M, C]`."""
        x = x + self.ls1(self.attn(self.norm1(x), self.norm_context(context)))
        out: torch.Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class Generate(nn.Module):
    """Semantic tokens from windows: grid `[B, H, W, C]` → `[B, windows · count², C]`."""

    def __init__(self, width: int, heads: int, window: tuple[int, int], count: int) -> None:
        super().__init__()
        self.window, self.count = window, count
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.cross = CrossBlock(width, heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool, add position, read the neighbourhood."""
        pooled = pool_windows(x, self.window, self.count)
        pooled = pooled + self.position(pooled.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        tokens = to_windows(pooled, self.count)
        out: torch.Tensor = self.cross(tokens, torch.cat([tokens, local_context(x, self.window)], dim=1))
        return out.reshape(x.shape[0], -1, x.shape[3])


class GenerateGlobally(nn.Module):
    """The second generation: semantic tokens `[B, S, C]` and image tokens `[B, N, C]` → `[B, S, C]`."""

    def __init__(self, width: int, heads: int, count: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, count * count, width) * 0.02)
        self.cross = CrossBlock(width, heads)

    def forward(self, semantic: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The learned start is added in every window; the context is both sets."""
        windows = semantic.shape[1] // self.start.shape[1]
        query = semantic + self.start.repeat(1, windows, 1)
        out: torch.Tensor = self.cross(query, torch.cat([semantic, image], dim=1))
        return out


class SemanticBlocks(nn.Sequential):
    """Stage 3's blocks, in sixes: `[B, H, W, C]` → `[B, H, W, C]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the module's docstring."""
        for first in range(0, len(self), len(PATTERN)):
            swin, generate, globally, self1, self2, recover = (self[first + i] for i in range(len(PATTERN)))
            x = swin(x)
            image = x.flatten(1, 2)
            semantic = self2(self1(globally(generate(x), image)))
            x = recover(image, semantic).reshape(x.shape)
        return x


def semantic_blocks(blocks: Any, count: int) -> SemanticBlocks:
    """Replace five of every six Swin blocks; the first of each six is kept."""
    from timm.models.vision_transformer import Block

    width, heads, window = blocks[0].dim, blocks[0].attn.num_heads, blocks[0].window_size
    make: dict[str, Callable[[], nn.Module]] = {
        "generate": lambda: Generate(width, heads, window, count),
        "generate globally": lambda: GenerateGlobally(width, heads, count),
        "self": lambda: Block(width, heads, qkv_bias=True, init_values=LAYER_SCALE),
        "recover": lambda: CrossBlock(width, heads),
    }
    kinds = [PATTERN[index % len(PATTERN)] for index in range(len(blocks))]
    return SemanticBlocks(*(make[kind]() if kind in make else block for kind, block in zip(kinds, blocks, strict=True)))


class StVit(Trained):
    """Images `[B, 3, H, W]` → `[B, classes]`.

    backbone: timm's SwinTransformer whose stage 3 is `SemanticBlocks`. semantic: s, semantic tokens along a window.
    """

    method: ClassVar[str] = "stvit"
    unused: ClassVar[tuple[str, ...]] = ("relative_position_index", "attn_mask")

    def __init__(self, backbone: Any, semantic: int) -> None:
        super().__init__(backbone)
        self.semantic, blocks = semantic, backbone.layers[2].blocks
        (height, width), (h, w) = blocks[0].input_resolution, blocks[0].window_size
        few = (height // h) * (width // w) * semantic * semantic
        per_six = (height * width, height * width, few, few, few, height * width)
        self.tokens = per_six * (len(blocks) // len(PATTERN))

    def own_key(self, key: str) -> str:
        """Microsoft's Swin downsamples at the end of a stage, timm's at the start of the next."""
        key = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", key)
        return PREFIX + re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", key)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The Swin's own forward: only stage 3's blocks differ."""
        out: torch.Tensor = self.backbone(images)
        return out


def create(
    name: str,
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    *,
    semantic: int = 3,
    options: Mapping[str, Any] | None = None,
) -> StVit:
    """An STViT-R on timm's Swin `name` (`swin_small_patch4_window7_224`) with random weights.

    semantic: s, so that each window has s² semantic tokens. Raises LoadError where stage 3 cannot be cut into windows
    or into sixes.
    """
    backbone = build_backbone(name, num_classes, input_size, options, family="SwinTransformer")
    if len(backbone.layers) < 3:
        raise LoadError(f"stvit: timm:{name} has {len(backbone.layers)} stages; the third is replaced")
    blocks = backbone.layers[2].blocks
    grid, window = tuple(blocks[0].input_resolution), tuple(blocks[0].window_size)
    if len(blocks) % len(PATTERN):
        raise LoadError(f"stvit: stage 3 of timm:{name} has {len(blocks)} blocks; they are replaced in sixes")
    if any(g % w for g, w in zip(grid, window, strict=True)):
        raise LoadError(f"stvit: stage 3's grid {grid} is not a multiple of its windows {window}; give --input-size")
    if not 1 <= semantic <= min(window):
        raise LoadError(f"stvit: semantic={semantic} must be 1 to {min(window)}, the window's side")
    backbone.layers[2].blocks = semantic_blocks(blocks, semantic)
    return StVit(backbone, semantic).eval()


class STViTSchedule(Architecture):
    """`stvit:semantic=3`: as the checkpoint was trained, with 3 x 3 semantic tokens per window."""

    name: ClassVar[str] = "stvit"
    weights: ClassVar[str | None] = "stvit"
    keys: ClassVar[Mapping[str, str]] = {"semantic": "semantic tokens along a window's side, the checkpoint's own"}

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """A whole number."""
        return None if value == int(value) > 0 else f"{key}={value:g} must be a whole number, 1 or more"

    @staticmethod
    def check_together(key: str, amounts: Sequence[float], options: Mapping[str, str]) -> str | None:
        """One side."""
        return one_amount(key, amounts)

    @classmethod
    def build(cls, module: Any, schedule: TokenSchedule, lowering: Lowering) -> StVit:
        """The same model, once its count is the one asked for."""
        if schedule.amounts[0] != module.semantic:
            raise ScheduleError(f"{schedule}: this checkpoint was trained with semantic={module.semantic}")
        return StVit(module.backbone, module.semantic)

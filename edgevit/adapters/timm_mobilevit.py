"""timm's MobileViT: the transformers inside a convolutional network, one stage each.

A MobileViT block cuts its map into small patches and lets the pixels at one place of all patches attend to each other:
`[B * pixels, patches, C]`, one group per pixel place. All tokens come back behind the last transformer block, where the
map is folded again and joins the block's input. MobileViT version 2 is refused: its attention has no keys per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.adapters.known import check_children, check_eval, check_methods, check_part, check_type
from edgevit.adapters.timm_block import ResidualBlock
from edgevit.adapters.timm_vit import check_block
from edgevit.errors import UnsupportedModel
from edgevit.stages import Stage, VitModel

if TYPE_CHECKING:
    from timm.models.byobnet import ByobNet

MODEL_CHILDREN = {"stem", "stages", "final_conv", "head"}
BLOCK_CHILDREN = {"conv_kxk", "conv_1x1", "transformer", "norm", "conv_proj", "conv_fusion"}
MODEL_METHODS = ("forward", "forward_features", "forward_head")


def adapt(module: nn.Module) -> VitModel | None:
    """Take a timm MobileViT apart; None for anything else, also for other networks of timm's `ByobNet`."""
    try:
        from timm.models.byobnet import ByobNet
        from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
    except ModuleNotFoundError:
        return None  # without timm there can be no timm model
    if not isinstance(module, ByobNet):
        return None
    if any(isinstance(m, MobileVitV2Block) for m in module.modules()):
        raise UnsupportedModel(
            f"{type(module).__name__} is a MobileViT version 2: its linear attention sums all tokens into one vector "
            "and has no keys to match tokens by, so they cannot be reduced; it exports dense (drop --reduce)"
        )
    if not any(isinstance(m, MobileVitBlock) for m in module.modules()):
        return None
    _check_model(module)
    image_size = _image_size(module)
    steps: list[Any] = [block for stage in module.stages for block in stage]
    homes = [i for i, step in enumerate(steps) if isinstance(step, MobileVitBlock)]
    cuts = [_cut(step, size) for step, size in _maps(module, steps, image_size) if isinstance(step, MobileVitBlock)]
    ends = [*homes[1:], len(steps)]
    return VitModel(
        module=module,
        family="timm MobileViT",
        stem=nn.Sequential(module.stem, *steps[: homes[0]]),
        stages=tuple(
            Stage(
                blocks=tuple(ResidualBlock(block) for block in steps[home].transformer),
                prefix=0,
                grid=cut.patches,
                groups=cut.patch[0] * cut.patch[1],
                restores=True,
                enter=Unfold(steps[home], cut),
                leave=Fold(steps[home], cut, steps[home + 1 : end]),
                shortcut=True,
            )
            for home, end, cut in zip(homes, ends, cuts, strict=True)
        ),
        head=MobileVitHead(module),
        class_token=False,
        image_size=image_size,
        pooling=module.head.global_pool.pool_type or "none",
    )


def _image_size(model: Any) -> tuple[int, int]:
    """The size that the architecture names: the network itself takes any, and counts need one."""
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        raise UnsupportedModel(
            f"{type(model).__name__} does not name its image size, which its token counts follow from; set "
            "model.pretrained_cfg = {'input_size': (3, HEIGHT, WIDTH)}"
        )
    return int(size[1]), int(size[2])


def _maps(model: ByobNet, steps: Sequence[Any], image_size: tuple[int, int]) -> list[tuple[Any, tuple[int, int]]]:
    """Each step with the (height, width) of the map it is given, from one run."""
    found = []
    with torch.no_grad():
        x = model.stem(torch.zeros(1, model.in_chans, *image_size))
        for step in steps:
            found.append((step, (x.shape[2], x.shape[3])))
            x = step(x)
    return found


def _check_model(model: ByobNet) -> None:
    from timm.layers.classifier import ClassifierHead
    from timm.models.byobnet import ByobNet
    from timm.models.mobilevit import MobileVitBlock

    name = type(model).__name__
    check_methods(model, MODEL_METHODS, ByobNet)
    check_children(name, model, MODEL_CHILDREN)
    check_eval(model)
    check_type("head", model.head, ClassifierHead)
    for i, stage in enumerate(model.stages):
        check_type(f"stages.{i}", stage, nn.Sequential)
        for j, step in enumerate(stage):
            if not isinstance(step, MobileVitBlock):
                continue
            where = f"stages.{i}.{j}"
            check_part(where, step, BLOCK_CHILDREN, MobileVitBlock)
            check_type(f"{where}.transformer", step.transformer, nn.Sequential)
            for k, block in enumerate(step.transformer):
                check_block(f"{where}.transformer.{k}", block)


class Cut:
    """How a map `[B, C, h, w]` falls into patches; the whole sizes differ where patches do not divide the map."""

    def __init__(self, size: tuple[int, int], patch: tuple[int, int]) -> None:
        self.size, self.patch = size, patch
        self.patches = (-(-size[0] // patch[0]), -(-size[1] // patch[1]))
        self.whole = (self.patches[0] * patch[0], self.patches[1] * patch[1])


def _cut(block: Any, given: tuple[int, int]) -> Cut:
    """The map behind the block's local convolution."""
    conv = next(m for m in block.conv_kxk.modules() if isinstance(m, nn.Conv2d))
    down, across = (-(-n // s) for n, s in zip(given, conv.stride, strict=True))
    return Cut((down, across), tuple(block.patch_size))


class Unfold(nn.Module):
    """Map `[B, C, h, w]` → local convolutions → tokens `[B * pixels, patches, D]`."""

    def __init__(self, block: nn.Module, cut: Cut) -> None:
        super().__init__()
        self.block: Any = block
        self.cut = cut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map is stretched where patches do not divide it."""
        cut = self.cut
        x = self.block.conv_1x1(self.block.conv_kxk(x))
        if tuple(x.shape[2:]) != cut.size:
            raise UnsupportedModel(
                f"a MobileViT block was taken apart for a map of {cut.size[0]}x{cut.size[1]} and is given one of "
                f"{x.shape[2]}x{x.shape[3]}; its schedule holds for the image size in model.pretrained_cfg alone"
            )
        if cut.whole != cut.size:
            x = F.interpolate(x, size=cut.whole, mode="bilinear", align_corners=False)
        batch, width = x.shape[:2]
        x = x.reshape(batch, width, cut.patches[0], cut.patch[0], cut.patches[1], cut.patch[1])
        x = x.permute(0, 3, 5, 2, 4, 1)  # [B, patch, patch, patches, patches, D]
        return x.reshape(batch * cut.patch[0] * cut.patch[1], cut.patches[0] * cut.patches[1], width)


class Fold(nn.Module):
    """Tokens → map, projected and joined with the block's input; then the layers up to the next block."""

    def __init__(self, block: nn.Module, cut: Cut, behind: Sequence[nn.Module]) -> None:
        super().__init__()
        self.block: Any = block
        self.cut = cut
        self.behind = nn.Sequential(*behind)

    def forward(self, x: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
        """`[B * pixels, patches, D]`, what the block was given `[B, C, h, w]` → map."""
        cut, block = self.cut, self.block
        x = block.norm(x)
        x = x.reshape(len(entered), *cut.patch, *cut.patches, x.shape[2])
        x = x.permute(0, 5, 3, 1, 4, 2).reshape(len(entered), -1, *cut.whole)
        if cut.whole != cut.size:
            x = F.interpolate(x, size=cut.size, mode="bilinear", align_corners=False)
        x = block.conv_proj(x)
        if block.conv_fusion is not None:
            x = block.conv_fusion(torch.cat([entered, x], dim=1))
        out: torch.Tensor = self.behind(x)
        return out


class MobileVitHead(nn.Module):
    """Last convolution, pooling and classifier, on the map."""

    def __init__(self, model: ByobNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Map `[B, C, h, w]` → what the model returns; every token is back, so no sizes."""
        out: torch.Tensor = self.model.forward_head(self.model.final_conv(x))
        return out

"""Tiny models of timm's families with windows, stages or maps: `FAMILIES`, display name → builder.

Every parameter and statistic is random, so a part that is left out shows; evaluation mode; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 7


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill all parameters, those that a library starts at zero too; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float) -> None:
        tensor.normal_(0, std, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf == "logit_scale":
                parameter.uniform_(0, 2, generator=generator)
            elif leaf in (
                "relative_position_bias_table",
                "attention_biases",
                "pos_embed",
                "pos_embed_win",
                "cls_token",
            ):
                normal(parameter, 0.5)
            elif parameter.ndim == 1:
                parameter.uniform_(0.4, 1.0, generator=generator) if leaf in ("weight", "gamma") else normal(
                    parameter, 0.3
                )
            else:
                normal(parameter, parameter[0].numel() ** -0.5)
    return model.eval()


def settled(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Batch norms with the statistics of some images, as behind training: else no image would change the outputs."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(pictures(16, size, seed=3))
        for norm in norms:
            norm.running_var.add_(0.02)  # a channel that hardly moves would blow rounding up
    return model.eval()


def pictures(count: int, size: tuple[int, int], seed: int = 1) -> torch.Tensor:
    """`[count, 3, H, W]`: coarse random colours under noise, so that images differ from one another."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size, mode="bilinear") + 0.5 * torch.randn(count, 3, *size, generator=generator)


def swin(**options) -> nn.Module:
    """16x16, then 8x8 patches in windows of 4x4: shifted and not."""
    from timm.models.swin_transformer import SwinTransformer

    sizes = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    return randomized(SwinTransformer(**{**sizes, "num_classes": CLASSES, **options}))


def swin_v2(**options) -> nn.Module:
    """The same in version 2."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    sizes = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    return randomized(SwinTransformerV2(**{**sizes, "num_classes": CLASSES, **options}))


def hiera(**options) -> nn.Module:
    """16x16, 8x8, 4x4 and 2x2 tokens; the second and third block of the third stage, and the last block, can reduce."""
    from timm.models.hiera import Hiera

    sizes = {"img_size": (64, 64), "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 3, 2)}
    return randomized(Hiera(**{**sizes, "num_classes": CLASSES, **options}))


def pit(**options) -> nn.Module:
    """7x7, 4x4 and 2x2 patches."""
    from timm.models.pit import PoolingVisionTransformer

    sizes = {"img_size": 64, "base_dims": (8, 8, 8), "depth": (2, 2, 1), "heads": (2, 4, 4)}
    return randomized(PoolingVisionTransformer(**{**sizes, "num_classes": CLASSES, **options}))


def levit(cls: str = "LevitDistilled", **options) -> nn.Module:
    """8x8, 4x4 and 2x2 tokens."""
    from timm.models import levit as library

    sizes = {"img_size": 64, "stem_type": "s8", "embed_dim": (16, 24, 32), "key_dim": 4, "num_heads": (2, 3, 4)}
    model = getattr(library, cls)(**{**sizes, "depth": (2, 2, 1), "num_classes": CLASSES, **options})
    return settled(randomized(model), (64, 64))


def efficientformer(**options) -> nn.Module:
    """7x7 tokens at 56 pixels; timm's attention is built for 7x7 alone."""
    from timm.models.efficientformer import EfficientFormer

    sizes = {"depths": (1, 3), "embed_dims": (8, 16), "num_vit": 2, "layer_scale_init_value": 1.0}
    return settled(randomized(EfficientFormer(**{**sizes, "num_classes": CLASSES, **options})), (56, 56))


def mobilevit(size: tuple[int, int] = (64, 64), patch: int = 2, depth: int = 2, **options) -> nn.Module:
    """8x8 and 4x4 maps in patches of 2x2; a block behind the first transformer block, and the last convolution."""
    from timm.models.byobnet import ByobNet, ByoModelCfg
    from timm.models.mobilevit import _inverted_residual_block, _mobilevit_block

    def block(width: int, inner: int) -> tuple[object, ...]:
        return _mobilevit_block(
            d=1, c=width, s=2, transformer_dim=inner, transformer_depth=depth, patch_size=patch, br=2.0
        )

    config = ByoModelCfg(
        blocks=(_inverted_residual_block(d=1, c=8, s=2, br=2.0), block(12, 16), block(16, 24)),
        stem_chs=8,
        stem_type="3x3",
        stem_pool="",
        downsample="",
        act_layer="silu",
        num_features=32,
    )
    model = ByobNet(config, **{"num_classes": CLASSES, **options})
    model.pretrained_cfg = {"input_size": (3, *size)}
    return settled(randomized(model), size)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "Swin": swin,
    "Swin V2": swin_v2,
    "Hiera": hiera,
    "PiT": pit,
    "PiT distilled": partial(pit, distilled=True),
    "LeViT": partial(levit, "Levit"),
    "LeViT distilled": levit,
    "LeViT conv": partial(levit, use_conv=True),
    "EfficientFormer": efficientformer,
    "MobileViT": mobilevit,
}


def rowwise(model: nn.Module) -> nn.Module:
    """The model made blind to columns: convolutions read their middle column, positions and biases say rows alone.

    An image of constant rows then gives tokens that are the same along each row, through the whole network.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and any(module.padding):
                middle = module.weight.shape[3] // 2
                module.weight[..., :middle] = 0
                module.weight[..., middle + 1 :] = 0
            elif hasattr(module, "relative_position_bias_table"):  # Swin: offsets of both directions, row by row
                height, width = module.window_size
                table = module.relative_position_bias_table.view(2 * height - 1, 2 * width - 1, -1)
                table.copy_(table[:, :1].clone().expand_as(table))
            elif hasattr(module, "cpb_mlp"):  # Swin V2: a network of (down, across)
                module.cpb_mlp[0].weight[:, 1] = 0
            elif hasattr(module, "attention_biases"):  # LeViT, EfficientFormer
                height, width = getattr(module, "resolution", (7, 7))
                table = module.attention_biases.view(-1, height, width)
                table.copy_(table[..., :1].clone().expand_as(table))
        position = getattr(model, "pos_embed", None)
        if position is not None and position.ndim == 4:  # PiT
            position.copy_(position[..., :1].clone().expand_as(position))
        elif position is not None:  # Hiera
            grid = position.view(1, *model.tokens_spatial_shape, -1)
            grid.copy_(grid[:, :, :1].clone().expand_as(grid))
    return model


def striped(count: int, size: tuple[int, int]) -> torch.Tensor:
    """`[count, 3, H, W]` of random rows, each of one colour."""
    rows = torch.randn(count, 3, size[0], 1, generator=torch.Generator().manual_seed(2))
    return rows.expand(-1, -1, -1, size[1]).contiguous()

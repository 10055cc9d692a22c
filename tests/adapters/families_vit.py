"""Tiny random models of timm's VisionTransformer family, for docs/support.md."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}


def build(**options) -> nn.Module:
    """A VisionTransformer whose outputs depend on every patch."""
    from timm.models.vision_transformer import VisionTransformer

    return randomised(VisionTransformer(**{**SIZES, **options}))


def distilled() -> nn.Module:
    """DeiT with a distillation token."""
    from timm.models.deit import VisionTransformerDistilled

    return randomised(VisionTransformerDistilled(**SIZES))


def randomised(model: nn.Module) -> nn.Module:
    """Weights that hide nothing: matrices of spread 0.15, vectors near 0.5."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
            else:
                parameter.uniform_(0.2, 0.8)
    return model.eval()


FAMILIES = {
    "ViT / DeiT / AugReg (class token)": build,
    "ViT / MAE (average pooling)": partial(build, global_pool="avg"),
    "ViT (token outputs)": partial(build, global_pool=""),
    "DeiT distilled": distilled,
    "DeiT-III (layer scale)": partial(build, init_values=0.5, no_embed_class=True),
    "DINOv2 with registers": partial(build, reg_tokens=4, init_values=0.5, no_embed_class=True),
    "CLIP (pre-norm)": partial(build, pre_norm=True),
    "SigLIP (attention pooling)": partial(build, global_pool="map", class_token=False),
}

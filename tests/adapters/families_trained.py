"""Tiny random models of the architectures that were trained with their reduction, for docs/support.md."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

VIT = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
SWIN = {"patch_size": 2, "embed_dim": 12, "depths": (1, 1, 6), "num_heads": (1, 1, 2), "window_size": 4}


def build(architecture: str, backbone: str = "vit_tiny_patch16_224", size: int = 32, **settings) -> nn.Module:
    """A trained architecture whose outputs depend on every patch."""
    from edgevit.trained import trained

    options = SWIN if backbone.startswith("swin") else VIT
    module = trained(architecture)(backbone, 7, (size, size), options=options, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15, generator=generator)
            else:
                parameter.uniform_(0.2, 0.8, generator=generator)
    return module


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "DynamicViT": partial(build, "dynamicvit", blocks=(1, 2, 3)),
    "DTEM": partial(build, "dtem"),
    "SiT": partial(build, "sit", stages=(1, 1, 1), keep=0.7),
    "STViT-R": partial(build, "stvit", "swin_tiny_patch4_window7_224", 64, semantic=2),
    "LookupViT": partial(build, "lookupvit", compressed=(3, 3)),
    "DToP": partial(build, "dtop", stages=(1, 2)),
}

"""Architectures of `edgevit.trained`: the plain backbone with what was trained beside it, or one piece as it is.

dynamicvit, dtem: the backbone's own blocks, between which a schedule reduces; without one it runs dense.
sit, stvit, lookupvit, dtop: the reduction is in the architecture, so there are no blocks to reduce between; a schedule
of the same name sets it (`edgevit.trained.rebuild`), and without one it runs as it was loaded.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from edgevit.adapters.known import check_eval
from edgevit.stages import Stage, VitModel
from edgevit.trained.base import Trained


def adapt(module: nn.Module) -> VitModel | None:
    """Take a trained architecture apart where it can be; None for anything else."""
    if not isinstance(module, Trained):
        return None
    check_eval(module)
    backbone, steps = module.backbone, module.steps()
    if steps is not None:
        from edgevit.adapters.timm_vit import adapt as adapt_vit

        vit = adapt_vit(backbone)
        assert vit is not None  # edgevit.trained builds these on timm's VisionTransformer alone
        return replace(vit, family=f"{module.method} on {vit.family}", trained={module.method: steps})
    prefix: int = getattr(backbone, "num_prefix_tokens", 0)
    return VitModel(
        module=module,
        family=f"{module.method} on timm {type(backbone).__name__}",
        stem=module,
        stages=(Stage((), prefix, tuple(backbone.patch_embed.grid_size)),),
        head=AsItIs(),
        class_token=False,
        image_size=tuple(backbone.patch_embed.img_size),
        pooling="none",
        trained={module.method: module},
    )


class AsItIs(nn.Module):
    """The head of a model that is one piece: its stem gave the outputs already."""

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """`x`."""
        return x

"""Heads that pool over patches: a merged token counts as often as the patches it stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

WEIGHTED = ("avg", "avgmax", "map")  # poolings whose result depends on how often a token counts


class PoolingHead(nn.Module):
    """Final norm, pooling and classifier of a timm model; `skip` prefix tokens are not pooled over."""

    def __init__(self, model: nn.Module, skip: int) -> None:
        super().__init__()
        self.model: Any = model
        self.skip = skip

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, M, C]`, sizes `[B, M]` or None → what the model returns (`[B, classes]` for classifiers)."""
        model = self.model
        x = model.norm(x)
        kind = model.global_pool
        if size is None or kind not in WEIGHTED:
            out: torch.Tensor = model.forward_head(x)
            return out
        x, size = x[:, self.skip :], size[:, self.skip :]
        if kind == "map":
            pooled = model.attn_pool(x, attn_mask=size.log()[:, None, None, :])
        else:
            pooled = weighted_mean(x, size)
            if kind == "avgmax":
                pooled = 0.5 * (x.amax(dim=1) + pooled)
        result: torch.Tensor = model.head(model.fc_norm(pooled))
        return result


def weighted_mean(x: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Mean over tokens `[B, M, C]` → `[B, C]`, each as often as its size `[B, M]` says."""
    weight = (size / size.sum(dim=1, keepdim=True)).unsqueeze(1)  # [B, 1, M]
    return (weight @ x).squeeze(1)

"""Attention from one set of tokens to another, in the parts that the architectures here put together differently."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Cross(nn.Module):
    """Queries `[B, M, C]` read a context `[B, N, C]` with H heads of width d = C/H."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.proj = nn.Linear(width, width), nn.Linear(width, width)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N, C]` → `[B, H, N, d]`."""
        batch, count, width = x.shape
        return x.reshape(batch, count, self.heads, width // self.heads).transpose(1, 2)

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, H, N, d]` → `[B, N, C]`, through the output projection."""
        batch, heads, count, width = x.shape
        out: torch.Tensor = self.proj(x.transpose(1, 2).reshape(batch, count, heads * width))
        return out

    def logits(self, query: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Scaled products `[B, H, M, N]`, before the softmax."""
        out: torch.Tensor = (self.split(self.q(query)) @ self.split(self.k(context)).transpose(2, 3)) * self.scale
        return out

    def mix(self, weights: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Weights `[B, H, M, N]` and the context whose values they mix → `[B, M, C]`."""
        return self.join(weights @ self.split(self.v(context)))

    def forward(self, query: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """`[B, M, C]`, by the fused kernel."""
        q, k, v = self.split(self.q(query)), self.split(self.k(context)), self.split(self.v(context))
        return self.join(F.scaled_dot_product_attention(q, k, v))

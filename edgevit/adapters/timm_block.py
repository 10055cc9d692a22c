"""The residual block that timm's sequence models share, whatever they call its parts.

    x = x + scale₁(proj(gate · norm(softmax(q kᵀ + bias) v)))    q, k, v of norm1(x)     (post-norm: of x itself,
    x = x + scale₂(mlp(norm2(x)))                                                        norms on what is added)

q, k, v come from one Linear (its bias inside, or as `q_bias`, `k_bias`, `v_bias` beside it) or from three. scale is a
LayerScale module, a `gamma` parameter, or nothing. A family adds its positions in `place`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.adapters.block import Block, heads_first, heads_last, linear_macs
from edgevit.stages import Tap

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Tokens


class ResidualBlock(Block):
    """A timm block with children `attn` and `mlp`, in parts."""

    def __init__(self, block: Any, post_norm: bool = False) -> None:
        super().__init__()
        self.block: Any = block
        self.post_norm = post_norm
        attention = block.attn
        self.heads: int = attention.num_heads
        self.attention_width: int = attention.proj.in_features
        self.macs_per_token = (projection_macs(attention), linear_macs(block.mlp))

    def place(self, tap: Tap, tokens: Tokens) -> Tap:
        """Positions inside the attention: none here, they are in the stream already."""
        return tap

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """`[B, N, C]` → queries, keys, values, gate."""
        attention, normed = self.block.attn, self._before(1, x)
        q, k, v = project_qkv(attention, normed)
        return self.place(self._tap(q, k, v)._replace(gate=self._gate(normed), normed=normed), tokens)

    def query_keys(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Queries and keys alone; `v` is a stand-in without columns."""
        normed = self._before(1, x)
        q, k = (project_part(self.block.attn, normed, part) for part in "qk")
        return self.place(self._tap(q, k, q[..., :0]), tokens)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, d]`."""
        return project_part(self.block.attn, self._before(1, x), "v")

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """Norm and gate (where there are), projection, scale, residual."""
        attention, out = self.block.attn, heads_last(attended)
        norm = getattr(attention, "norm", None)
        out = out if norm is None else norm(out)
        gate = self._gate(self._before(1, x)) if tap.gate is None else tap.gate
        out = out if gate is None else out * gate
        return x + self._scaled(1, attention.proj(out))

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`."""
        return x + self._scaled(2, self.block.mlp(self._before(2, x)))

    def _tap(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tap:
        attention = self.block.attn
        q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        q = q if q_norm is None else q_norm(q)
        return Tap(q, k if k_norm is None else k_norm(k), v, attention.scale)

    def _gate(self, normed: torch.Tensor) -> torch.Tensor | None:
        gate = getattr(self.block.attn, "gate", None)
        return None if gate is None else gate(normed).sigmoid()

    def _before(self, half: int, x: torch.Tensor) -> torch.Tensor:
        norm: nn.Module = getattr(self.block, f"norm{half}")
        return x if self.post_norm else norm(x)

    def _scaled(self, half: int, out: torch.Tensor) -> torch.Tensor:
        """What is added to the stream: post-norm, then the layer scale."""
        block = self.block
        if self.post_norm:
            out = getattr(block, f"norm{half}")(out)
        module, gamma = getattr(block, f"ls{half}", None), getattr(block, f"gamma_{half}", None)
        out = out if module is None else module(out)
        return out if gamma is None else gamma * out


def project_qkv(attention: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`[B, N, C]` → q, k, v `[B, H, N, d]` (k and v may have fewer heads: grouped queries)."""
    fused = getattr(attention, "qkv", None)
    if fused is None:
        q, k, v = (project_part(attention, x, part) for part in "qkv")
        return q, k, v
    beside = getattr(attention, "q_bias", None)
    if beside is None:
        out = fused(x)
    else:
        out = F.linear(x, fused.weight, torch.cat([beside, attention.k_bias, attention.v_bias]))
    batch, count, width = out.shape
    heads: int = attention.num_heads
    q, k, v = out.reshape(batch, count, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def project_part(attention: Any, x: torch.Tensor, part: str) -> torch.Tensor:
    """One of "q", "k", "v": `[B, N, C]` → `[B, H, N, d]`."""
    size: int = attention.proj.in_features // attention.num_heads
    fused = getattr(attention, "qkv", None)
    if fused is None:
        out = getattr(attention, f"{part}_proj")(x)
        return heads_first(out, out.shape[-1] // size)
    width: int = fused.out_features // 3
    rows = slice("qkv".index(part) * width, ("qkv".index(part) + 1) * width)
    bias = getattr(attention, f"{part}_bias", None) if fused.bias is None else fused.bias[rows]
    return heads_first(F.linear(x, fused.weight[rows], bias), width // size)


def projection_macs(attention: nn.Module) -> int:
    """Multiply-accumulates of one token through the attention's own Linears (not those of a position network)."""
    return sum(m.weight.numel() for m in attention.children() if isinstance(m, nn.Linear))

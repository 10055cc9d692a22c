"""What adapters' blocks share: softmax attention in the form a schedule needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from edgevit.stages import Tap


class Block(nn.Module):
    """Base of a `BlockView`: `attend` is softmax attention; a family with another attention overrides it."""

    def attend(self, tap: Tap, explicit: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The biases ride as the mask, so fused kernels stay usable; `explicit` shows the probabilities."""
        mask = logit_bias(tap)
        if not explicit:
            return F.scaled_dot_product_attention(tap.q, tap.k, tap.v, attn_mask=mask, scale=tap.scale), None
        logits = (tap.q * tap.scale) @ tap.k.transpose(2, 3)
        probabilities = (logits if mask is None else logits + mask).softmax(dim=-1)
        return probabilities @ tap.v, probabilities

    def weigh(self, probabilities: torch.Tensor, log_size: torch.Tensor | None) -> torch.Tensor:
        """Probabilities `[B, H, N, N]` → what multiplies the values: themselves, unless heads mix behind the softmax.

        log_size: `[B, N]` of the tokens that the columns stand for, or None.
        """
        return probabilities


def logit_bias(tap: Tap) -> torch.Tensor | None:
    """Positions, window masks and token sizes as one bias on the logits, broadcastable to `[B, H, N, N]`."""
    if tap.log_size is None:
        return tap.bias
    sizes = tap.log_size[:, None, None, :]
    return sizes if tap.bias is None else tap.bias + sizes


def heads_first(x: torch.Tensor, heads: int) -> torch.Tensor:
    """`[B, N, H * d]` → `[B, H, N, d]`."""
    batch, count, width = x.shape
    return x.reshape(batch, count, heads, width // heads).transpose(1, 2)


def heads_last(x: torch.Tensor) -> torch.Tensor:
    """`[B, H, N, d]` → `[B, N, H * d]`."""
    batch, heads, count, width = x.shape
    return x.transpose(1, 2).reshape(batch, count, heads * width)


def linear_macs(module: nn.Module) -> int:
    """Multiply-accumulates of one token through every Linear below a module."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))

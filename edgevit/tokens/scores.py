"""Importance and similarity of tokens, as several methods define them. float32 whatever the stream is: they decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edgevit.stages import Tap

NORM_FLOOR = 1e-6  # a zero vector has cosine 0 with everything; float16's smallest normal number is 6e-5


def unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of `[..., d]` divided by their length, float32."""
    x = x.to(torch.float32)
    return x / x.square().sum(dim=-1, keepdim=True).sqrt().clamp_min(NORM_FLOOR)


def key_metric(tap: Tap, prefix: int) -> torch.Tensor:
    """Mean over heads of the patches' keys, L2-normalized: `[B, N - P, d]` float32 (ToMe, section 3)."""
    return unit(tap.k.to(torch.float32).mean(dim=1)[:, prefix:])


def class_attention(tap: Tap, prefix: int) -> torch.Tensor:
    """The class token's attention to the patches, mean over heads: `[B, N - P]`.

    One row of the softmax, exact, at H·N·d multiplications: the fused attention kernel keeps the rest. float32.
    """
    rows = class_attention_heads(tap)
    mean = torch.full((1, rows.shape[1]), 1 / rows.shape[1]) @ rows  # a product: runtimes reduce a middle axis slowly
    return mean.squeeze(1)[:, prefix:]


def class_attention_heads(tap: Tap) -> torch.Tensor:
    """The class token's attention to all tokens, per head: `[B, H, N]` float32."""
    if tap.probabilities is not None:
        return tap.probabilities[:, :, 0].to(torch.float32)
    query, keys = tap.q[:, :, :1].to(torch.float32), tap.k.to(torch.float32)
    logits = (query @ keys.transpose(2, 3)) * tap.scale  # [B, H, 1, N]
    if tap.bias is not None:
        logits = logits + tap.bias[..., :1, :]
    if tap.log_size is not None:
        logits = logits + tap.log_size[:, None, None, :]
    return logits.softmax(dim=-1)[:, :, 0]


def received_attention(tap: Tap) -> torch.Tensor:
    """Attention that each token receives, mean over heads and queries: `[B, N]` float32. Needs `tap.probabilities`."""
    assert tap.probabilities is not None  # Method.probabilities asks for them
    return tap.probabilities.to(torch.float32).mean(dim=(1, 2))


def halves(prefix: int) -> tuple[int, int]:
    """Where A (even sequence positions) and B (odd ones) begin behind the prefix.

    >>> halves(1), halves(2)
    ((1, 0), (0, 1))
    """
    return prefix % 2, 1 - prefix % 2

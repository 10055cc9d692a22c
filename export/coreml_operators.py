"""Operators that coremltools does not read, or reads as something else, in others that it reads right.

A table for `ExportedProgram.run_decompositions`. Found by running what was written (`edgevit.runtimes.mil`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

MASKED = -3e4  # no infinity in float16
LEAST = 1e-3


def rewritings(fused: bool) -> dict[Any, Callable[..., Any]]:
    """Operator → function of the same arguments. fused: attention stays one operator."""
    import torch

    aten = torch.ops.aten
    table: dict[Any, Callable[..., Any]] = {
        aten.alias.default: lambda x: x,
        aten.__and__.Tensor: torch.logical_and,
        aten.__or__.Tensor: torch.logical_or,
        aten.new_ones.default: lambda x, size, **options: torch.ones(size, dtype=options.get("dtype") or x.dtype),
        aten.where.ScalarOther: lambda c, a, b: torch.where(c, a, torch.full((1,), b, dtype=a.dtype)),
        aten.where.ScalarSelf: lambda c, a, b: torch.where(c, torch.full((1,), a, dtype=b.dtype), b),
        aten.reciprocal.default: lambda x: torch.ones(1, dtype=x.dtype) / x,  # theirs is 1 / (x + 1e-4)
        aten.rms_norm.default: rms_norm,
        aten.gelu.default: gelu,
        aten.conv2d.padding: same,
    }
    return table if fused else {**table, aten.scaled_dot_product_attention.default: products}


def gelu(x: Any, approximate: str = "none") -> Any:
    """The one by tanh written out, which coremltools knows and fuses again; its own reading drops `approximate`."""
    if approximate == "none":
        return NotImplemented
    return x * (0.5 * ((math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))).tanh() + 1))


def rms_norm(x: Any, shape: list[int], weight: Any = None, eps: float | None = None) -> Any:
    """X / √(mean(x²) + ε), by values divided by their largest first, so that float16 squares do not overflow.

    coremltools' own form divides alike and leaves ε as it was, which changes the result. The smallest divisor, 1e-3,
    is exact too: any one cancels.
    """
    import torch

    axes = list(range(-len(shape), 0))
    largest = x.abs().amax(axes, keepdim=True).clamp_min(LEAST)
    scaled = x / largest
    epsilon = (torch.finfo(torch.float32).eps if eps is None else eps) / (largest * largest)
    out = scaled * torch.rsqrt((scaled * scaled).mean(axes, keepdim=True) + epsilon)
    return out if weight is None else out * weight


def same(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: str = "valid",
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Any:
    """Padding by name as numbers: on which side an even kernel has one more is read differently elsewhere."""
    import torch

    if padding == "same":
        total = [(k - 1) * d for k, d in zip(weight.shape[2:], dilation, strict=True)]
        x = torch.constant_pad_nd(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
    return torch.conv2d(x, weight, bias, stride, 0, dilation, groups)


def products(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention as its two products and a softmax; the scale on the smaller factor, where float16 overflows last."""
    import torch

    if is_causal:
        raise NotImplementedError("causal attention is not written out; no vision transformer has it")
    if enable_gqa:  # several heads of queries share one of keys and values
        k, v = (part.repeat_interleave(q.shape[-3] // part.shape[-3], -3) for part in (k, v))
    logits = (q * (scale or q.shape[-1] ** -0.5)) @ k.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        logits = torch.where(attn_mask, logits, torch.full((1,), MASKED))
    elif attn_mask is not None:
        logits = logits + attn_mask
    return logits.softmax(-1) @ v

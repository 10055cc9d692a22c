"""The fused operators that ONNX Runtime's optimizer writes for transformers (domain com.microsoft).

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgevit.from_onnx.ops_layers import heads
from edgevit.from_onnx.ops_math import Attributes


def fast_gelu(attributes: Attributes, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The tanh approximation."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def quick_gelu(attributes: Attributes, x: Tensor) -> Tensor:
    """`x * sigmoid(alpha x)`."""
    return x * torch.sigmoid(attributes.get("alpha", 1.702) * x)


def bias_gelu(attributes: Attributes, x: Tensor, bias: Tensor) -> Tensor:
    """Exact, of the sum."""
    return functional.gelu(x + bias)


def fused_matmul(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    """`alpha A B`, either transposed."""
    if attributes.get("transBatchA", 0) or attributes.get("transBatchB", 0):
        raise ValueError("transBatchA and transBatchB are not imported")
    a = a.transpose(-2, -1) if attributes.get("transA", 0) else a
    b = b.transpose(-2, -1) if attributes.get("transB", 0) else b
    product: Tensor = attributes.get("alpha", 1.0) * torch.matmul(a, b)
    return product


def skip_layer_normalization(
    attributes: Attributes,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """The norm of a sum, and the sum as the fourth output."""
    total = x + skip if bias is None else x + skip + bias
    normed = functional.layer_norm(total, total.shape[-1:], scale, beta, attributes.get("epsilon", 1e-12))
    return normed, None, None, total


def multi_head_attention(
    attributes: Attributes, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *more: Tensor | None
) -> Tensor:
    """`[B, N, H * d]` three times → `[B, N, H * d]`."""
    if any(m is not None for m in more) or k is None or v is None or k.ndim != 3:
        raise ValueError("packed or cached keys and values, and masks, are not imported")
    if bias is not None:
        q, k, v = (x + b for x, b in zip((q, k, v), torch.split(bias, [t.shape[-1] for t in (q, k, v)]), strict=True))
    count = attributes["num_heads"]
    q, k, v = (heads(x, count) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, scale=attributes.get("scale")).transpose(1, 2).flatten(2)


def attention(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None, *more: Tensor | None
) -> Tensor:
    """`[B, N, C]`, one weight `[C, 3 * H * d]` for queries, keys and values → `[B, N, H * d]`."""
    if any(m is not None for m in more) or "qkv_hidden_sizes" in attributes:
        raise ValueError("masks, caches and unequal hidden sizes are not imported")
    q, k, v = (heads(p, attributes["num_heads"]) for p in functional.linear(x, weight.T, bias).chunk(3, -1))
    return functional.scaled_dot_product_attention(q, k, v, scale=attributes.get("scale")).transpose(1, 2).flatten(2)

"""Convolutions, norms, pooling, attention: as https://onnx.ai/onnx/operators says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from edgevit.from_onnx.ops_math import Attributes

CONVS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
AVERAGE_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def linear(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`[..., in]`, `[out, in]` → `[..., out]`."""
    return functional.linear(x, weight, bias)


def _windows(
    attributes: Attributes, x: Tensor, kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and the padding before and after each axis."""
    dims = x.ndim - 2
    strides = list(attributes.get("strides", [1] * dims))
    dilations = list(attributes.get("dilations", [1] * dims))
    automatic = attributes.get("auto_pad", "NOTSET")
    pads = list(attributes.get("pads", [0] * 2 * dims))
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        sizes = [int(s) for s in x.shape[2:]]
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, s, d, k in zip(sizes, strides, dilations, kernel, strict=True)
        ]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return strides, dilations, *((small, large) if automatic == "SAME_UPPER" else (large, small))
    return strides, dilations, pads[:dims], pads[dims:]


def _padded(x: Tensor, before: list[int], after: list[int], fill: float = 0.0) -> tuple[Tensor, list[int]]:
    """Padding that torch's operator can do itself stays; uneven one is done in front of it."""
    if before == after:
        return x, before
    pairs = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return functional.pad(x, pairs, value=fill), [0] * len(before)


def conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`[B, C, ...]` with `[out, C / groups, ...]`."""
    strides, dilations, before, after = _windows(attributes, x, [int(k) for k in weight.shape[2:]])
    x, padding = _padded(x, before, after)
    run: Any = CONVS[x.ndim - 2]
    result: Tensor = run(x, weight, bias, strides, padding, dilations, attributes.get("group", 1))
    return result


def conv_transpose(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The gradient of a convolution."""
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in attributes:
        raise ValueError("auto_pad and output_shape are not imported")
    strides, dilations, before, after = _windows(attributes, x, [int(k) for k in weight.shape[2:]])
    if before != after:
        raise ValueError("uneven padding is not imported")
    extra = attributes.get("output_padding", [0] * (x.ndim - 2))
    run: Any = TRANSPOSED[x.ndim - 2]
    result: Tensor = run(x, weight, bias, strides, before, extra, attributes.get("group", 1), dilations)
    return result


def batch_normalization(
    attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """With the statistics of training."""
    if attributes.get("training_mode", 0):
        raise ValueError("it is in training mode; export the model in evaluation mode")
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, attributes.get("epsilon", 1e-5))


def layer_normalization(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Over the axes from `axis` on."""
    axes = [int(s) for s in x.shape[attributes.get("axis", -1) :]]
    return functional.layer_norm(x, axes, scale.expand(axes), bias, attributes.get("epsilon", 1e-5))


def instance_normalization(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Per image and channel."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


def group_normalization(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Per image and group of channels."""
    groups = attributes["num_groups"]
    if scale.numel() != x.shape[1]:  # opset 18 to 20: one for each group
        scale, bias = (v.repeat_interleave(int(x.shape[1]) // groups) for v in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, attributes.get("epsilon", 1e-5))


def rms_normalization(attributes: Attributes, x: Tensor, scale: Tensor) -> Tensor:
    """Divided by the root of the mean square."""
    axes = [int(s) for s in x.shape[attributes.get("axis", -1) :]]
    return functional.rms_norm(x, axes, scale, attributes.get("epsilon", 1e-5))


def max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """The largest in each window."""
    kernel = attributes["kernel_shape"]
    strides, dilations, before, after = _windows(attributes, x, kernel)
    x, padding = _padded(x, before, after, float("-inf"))
    run: Any = MAX_POOLS[x.ndim - 2]
    result: Tensor = run(x, kernel, strides, padding, dilations, bool(attributes.get("ceil_mode", 0)))
    return result


def average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """The mean of each window."""
    kernel, counted = attributes["kernel_shape"], bool(attributes.get("count_include_pad", 0))
    strides, dilations, before, after = _windows(attributes, x, kernel)
    if before != after and not counted:
        raise ValueError("uneven padding that is not counted is not imported")
    if any(d != 1 for d in dilations):
        raise ValueError("dilations are not imported")
    x, padding = _padded(x, before, after)
    run: Any = AVERAGE_POOLS[x.ndim - 2]
    result: Tensor = run(x, kernel, strides, padding, bool(attributes.get("ceil_mode", 0)), counted)
    return result


def global_average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """The mean of each map."""
    return x.mean(tuple(range(2, x.ndim)), True)


def global_max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """The largest of each map."""
    return x.amax(tuple(range(2, x.ndim)), True)


def fused_attention(attributes: Attributes, q: Tensor, kt: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`[B, H, N, d]`, `[B, H, d, M]`, `[B, H, M, e]` → `[B, H, N, e]`; as `fuse_attention` writes it."""
    k = kt.transpose(-2, -1)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attributes["scale"])


def heads(x: Tensor, count: int) -> Tensor:
    """`[B, N, H * d]` → `[B, H, N, d]`."""
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def attention(
    attributes: Attributes, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *past: Tensor | None
) -> Tensor:
    """Opset 23: `[B, H, N, d]`, or `[B, N, H * d]` with the number of heads."""
    if any(p is not None for p in past) or attributes.get("softcap", 0.0):
        raise ValueError("past keys and values, and softcap, are not imported")
    flat = q.ndim == 3
    if flat:
        q = heads(q, attributes["q_num_heads"])
        k, v = heads(k, attributes["kv_num_heads"]), heads(v, attributes["kv_num_heads"])
    if q.shape[1] != k.shape[1]:
        raise ValueError("fewer heads of keys than of queries are not imported")
    causal = bool(attributes.get("is_causal", 0))
    out = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=attributes.get("scale"))
    return out.transpose(1, 2).flatten(2) if flat else out

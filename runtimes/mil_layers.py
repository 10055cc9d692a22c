"""Layers of MIL in torch: products, convolutions, pools, norms, activations, resizing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

Tensor = Any


def _ints(vector: Tensor | None, default: list[int]) -> list[int]:
    return default if vector is None else [int(v) for v in vector.tolist()]


def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(q · kᵀ / √d + mask) · v; a boolean mask keeps where it is true."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def _sides(pad_type: str, pad: Tensor | None, axes: int) -> list[int]:
    """Padding (before, after) each spatial axis. Only what the converter writes: explicit numbers, or none."""
    if pad_type not in ("valid", "custom"):
        raise NotImplementedError(f"pad_type={pad_type}")
    return _ints(pad, [0] * 2 * axes) if pad_type == "custom" else [0] * 2 * axes


def _padded(x: Tensor, sides: list[int], value: float) -> tuple[Tensor, list[int]]:
    """The input with the padding that torch's layers cannot do, and what is left for them: the same on both sides."""
    if sides[::2] == sides[1::2]:
        return x, sides[::2]
    pairs = [sides[i : i + 2] for i in range(0, len(sides), 2)]
    return F.pad(x, [v for pair in reversed(pairs) for v in pair], value=value), [0] * len(pairs)


def _conv(
    x: Tensor,
    weight: Tensor,
    pad_type: str = "valid",
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: int = 1,
) -> Tensor:
    axes = x.ndim - 2
    run = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    x, both = _padded(x, _sides(pad_type, pad, axes), 0.0)
    return run(x, weight, bias, _ints(strides, [1] * axes), both, _ints(dilations, [1] * axes), groups)


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Tensor | None = None,
    output_shape: Tensor | None = None,
    pad_type: str = "valid",
    strides: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: int = 1,
) -> Tensor:
    """The full result, from which the padding is cut; where it is said, up to a shape."""
    axes = x.ndim - 2
    cut = _sides(pad_type, pad, axes)
    run = {1: F.conv_transpose1d, 2: F.conv_transpose2d}[axes]
    out = run(x, weight, bias, _ints(strides, [1] * axes), 0, 0, groups, _ints(dilations, [1] * axes))
    left = [out.shape[2 + i] - cut[2 * i] - cut[2 * i + 1] for i in range(axes)]
    for axis, size in enumerate(left if output_shape is None else _ints(output_shape, [])[2:]):
        out = out.narrow(2 + axis, cut[2 * axis], size)
    return out


def _pool(average: bool) -> Callable[..., Tensor]:
    def pool(
        x: Tensor,
        kernel_sizes: Tensor,
        pad_type: str = "valid",
        strides: Tensor | None = None,
        pad: Tensor | None = None,
        exclude_padding_from_average: bool = False,
        ceil_mode: bool = False,
    ) -> Tensor:
        kernel = _ints(kernel_sizes, [])
        run: Any = {1: (F.max_pool1d, F.avg_pool1d), 2: (F.max_pool2d, F.avg_pool2d)}[len(kernel)][average]
        sides = _sides(pad_type, pad, len(kernel))
        if average and exclude_padding_from_average and sides[::2] != sides[1::2]:
            raise NotImplementedError("an average that leaves out padding which differs between the sides")
        options = {"count_include_pad": not exclude_padding_from_average} if average else {}
        x, both = _padded(x, sides, 0.0 if average else -math.inf)
        return run(x, kernel, _ints(strides, [1] * len(kernel)), both, ceil_mode=ceil_mode, **options)

    return pool


def _layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Over any axes; gain and offset have the shape of these."""
    over = sorted(a % x.ndim for a in _ints(axes, list(range(x.ndim))))
    if over == list(range(x.ndim - len(over), x.ndim)):
        return F.layer_norm(x, x.shape[over[0] :], gamma, beta, epsilon)
    variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    out = (x - mean) * torch.rsqrt(variance + epsilon)
    shape = [x.shape[a] if a in over else 1 for a in range(x.ndim)]
    out = out if gamma is None else out * gamma.reshape(shape)
    return out if beta is None else out + beta.reshape(shape)


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


def _instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _upsample_nearest(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    size = [math.floor(x.shape[-2] * scale_factor_height), math.floor(x.shape[-1] * scale_factor_width)]
    return F.interpolate(x, size, mode="nearest")


def _upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """half_pixel_centers is the opposite of align_corners where it is not said."""
    if half_pixel_centers is not None and bool(half_pixel_centers) == align_corners:
        raise NotImplementedError(f"align_corners={align_corners} with half_pixel_centers={half_pixel_centers}")
    size = [math.floor(x.shape[-2] * scale_factor_height), math.floor(x.shape[-1] * scale_factor_width)]
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


LAYERS: dict[str, Callable[..., Any]] = {
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "avg_pool": _pool(average=True),
    "max_pool": _pool(average=False),
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "gelu": _gelu,
    "relu": lambda x: F.relu(x),
    "relu6": lambda x: F.relu6(x),
    "leaky_relu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "silu": lambda x: F.silu(x),
    "sigmoid": lambda x: torch.sigmoid(x),
    "elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "thresholded_relu": lambda x, alpha=1.0: torch.where(x >= alpha, x, torch.zeros(())),
    "sigmoid_hard": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "tanh": lambda x: torch.tanh(x),
    "softplus": lambda x: F.softplus(x),
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, upscale_factor),
    "pixel_unshuffle": lambda x, downscale_factor: F.pixel_unshuffle(x, downscale_factor),
    "upsample_nearest_neighbor": _upsample_nearest,
    "upsample_bilinear": _upsample_bilinear,
}

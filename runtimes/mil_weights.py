"""Quantized values of MIL in torch: rounding to 8 bits and back, and compressed weights (`constexpr_*`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensor = Any


def _along(value: Any, rank: int, axis: int | None) -> Any:
    """A scale or zero point of one axis, to be broadcast over the others."""
    if not isinstance(value, torch.Tensor):
        return value
    shape = [1] * rank
    shape[0 if axis is None else axis] = -1
    return value.float().reshape(shape)


def _quantize(input: Tensor, scale: Any, output_dtype: str, zero_point: Any = 0, axis: int | None = None) -> Tensor:
    """clip(round(x / scale) + zero_point); halves go to the even number."""
    low, high = (-128, 127) if output_dtype == "int8" else (0, 255)
    steps = torch.round(input / _along(scale, input.ndim, axis)) + _along(zero_point, input.ndim, axis)
    return steps.clamp(low, high).to(getattr(torch, output_dtype))


def _dequantize(input: Tensor, scale: Any, zero_point: Any = 0, axis: int | None = None) -> Tensor:
    return (input.float() - _along(zero_point, input.ndim, axis)) * _along(scale, input.ndim, axis)


def _affine(quantized_data: Tensor, zero_point: Any, scale: Any, axis: int) -> Tensor:
    return _dequantize(quantized_data, scale, zero_point, axis)


def _spread(values: Tensor, shape: torch.Size) -> Tensor:
    """One value a block → one an element: each axis is repeated as often as the blocks are long."""
    for axis, (have, want) in enumerate(zip(values.shape, shape, strict=True)):
        values = values if have in (1, want) else values.repeat_interleave(want // have, axis)
    return values


def _blockwise(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Scale · (data - offset), one scale and offset a block."""
    shifted = data.float() if offset is None else data.float() - _spread(offset.float(), data.shape)
    return shifted * _spread(scale, data.shape)


def _look_up(indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: int | None = None) -> Tensor:
    """A table for each block of the indices: `lut` is [blocks along each axis..., entries, vector].

    iOS 16 writes one flat table, indices packed in bytes, and the shape apart.
    """
    if shape is not None:
        sizes = [int(s) for s in shape.tolist()]
        bits, count = (len(lut) - 1).bit_length(), torch.Size(sizes).numel()
        spread = (indices.reshape(-1, 1) >> torch.arange(8)) & 1  # lowest bits first
        places = (spread.reshape(-1)[: count * bits].reshape(count, bits) << torch.arange(bits)).sum(1)
        return lut[places].reshape(sizes)
    if lut.shape[-1] != 1:
        raise NotImplementedError(f"a table of vectors of {lut.shape[-1]}")
    entries = lut.shape[-2]
    blocks = torch.Size(lut.shape[:-2])
    which = _spread(torch.arange(blocks.numel()).reshape(blocks), indices.shape)
    return lut.reshape(-1)[which.expand(indices.shape) * entries + indices.long()]


WEIGHTS: dict[str, Callable[..., Any]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "constexpr_affine_dequantize": _affine,
    "constexpr_blockwise_shift_scale": _blockwise,
    "constexpr_lut_to_dense": _look_up,
    "constexpr_cast": lambda source_val, output_dtype: source_val,
}

"""Ranges: the scale and zero point of a tensor, by least squared error on its calibration sample."""

from __future__ import annotations

import torch

from edgevit.quant.scheme import Affine, QuantScheme

SAMPLE = 32767  # values the search looks at; from 32768 on torch uses threads, whose hand-over costs more than the work
TINY = 1e-8  # floor of a scale: a dead channel or constant tensor must not give 0


def fake_quantize(x: torch.Tensor, q: Affine) -> torch.Tensor:
    """Quantize and dequantize, round half to even, as every backend does."""
    return (torch.clamp(torch.round(x / q.scale) + q.zero_point, q.low, q.high) - q.zero_point) * q.scale


def affine(low: float, high: float, scheme: QuantScheme) -> Affine:
    """The quantizer of a range; 0 is always exactly representable.

    >>> affine(-1.0, 3.0, QuantScheme()).zero_point
    64
    >>> affine(-1.0, 3.0, QuantScheme(activations="int8")).zero_point
    0
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if scheme.activations == "int8":
        return Affine(max(-low, high, TINY) / 127, 0, *scheme.range)
    scale = max((high - low) / 255, TINY)
    return Affine(scale, round(-low / scale), *scheme.range)


def search(values: torch.Tensor, low: float, high: float, scheme: QuantScheme) -> Affine:
    """The range inside [low, high] with the least squared error on `values` (any shape).

    First both ends shrink together, then each end is refined alone around the best.
    """
    values = values.flatten()
    if len(values) > SAMPLE:
        generator = torch.Generator().manual_seed(0)
        values = values[torch.randint(0, len(values), (SAMPLE,), generator=generator)]
    low, high = min(low, 0.0), max(high, 0.0)
    shrink = torch.linspace(0.2, 1.0, 33).tolist()
    best = _best(values, [(low * f, high * f) for f in shrink], scheme)
    if scheme.activations == "uint8":
        near = torch.linspace(0.6, 1.4, 9).tolist()
        ends = [(max(low, best[0] * a), min(high, best[1] * b)) for a in near for b in near]
        best = _best(values, ends, scheme)
    return affine(*best, scheme)


def _best(values: torch.Tensor, ends: list[tuple[float, float]], scheme: QuantScheme) -> tuple[float, float]:
    errors = [float((fake_quantize(values, affine(a, b, scheme)) - values).square().mean()) for a, b in ends]
    return ends[min(range(len(ends)), key=errors.__getitem__)]


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `[out, ...]` → int8 of the same shape, and scales `[out]`; symmetric, -127 to 127."""
    scale = (weight.flatten(1).abs().amax(1) / 127).clamp_min(TINY)
    shape = (-1, *[1] * (weight.ndim - 1))
    return torch.clamp(torch.round(weight / scale.reshape(shape)), -127, 127).to(torch.int8), scale


def dequantize_weight(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The float weight an engine computes with."""
    return values.float() * scale.reshape(-1, *[1] * (values.ndim - 1))

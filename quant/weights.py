"""How a weight is stored: integers with one scale per output channel, integers in groups of inputs, 8-bit floats."""

from __future__ import annotations

import torch

from edgevit.export.float8 import LARGEST, quantize_float8
from edgevit.quant.ranges import TINY, quantize_weight
from edgevit.quant.scheme import QuantScheme


def round_weight(weight: torch.Tensor, scheme: QuantScheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `[out, ...]` → stored values of the same shape, and scales: `[out]`, in groups `[out, in / group]`."""
    if scheme.weights == "float8_e4m3fn":
        scale = (weight.abs().flatten(1).amax(1) / LARGEST).clamp_min(TINY)
        return quantize_float8(weight, scale), scale
    if not scheme.group:
        return quantize_weight(weight, scheme.weight_bits)
    if ungrouped(weight, scheme):
        return quantize_weight(weight)
    values, scale = quantize_weight(weight.reshape(-1, scheme.group), scheme.weight_bits)
    return values.reshape(weight.shape), scale.reshape(len(weight), -1)


def ungrouped(weight: torch.Tensor, scheme: QuantScheme) -> str | None:
    """Why a weight has 8 bits and one scale per output channel where the scheme asks for groups; None where it fits."""
    if not scheme.group:
        return None
    if weight.ndim != 2:
        return "a convolution has no groups of inputs; 8 bits per output channel instead"
    if weight.shape[1] % scheme.group:
        return f"its {weight.shape[1]} inputs are no multiple of {scheme.group}; 8 bits per output channel instead"
    return None

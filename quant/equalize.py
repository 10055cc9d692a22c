"""Equalization of a Linear's input: move range from activation channels into weight columns (SmoothQuant).

Xiao et al., 2023 (arXiv:2211.10438), eq. 4: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha); X / s and W · s give the same
product. A fixed alpha can ruin a model, so it is searched per input, and "off" is one of the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgevit.quant.calibrate import Observed
from edgevit.quant.ranges import dequantize_weight, fake_quantize, quantize_weight, search
from edgevit.quant.scheme import Affine, QuantScheme

ALPHAS = (None, 0.3, 0.5, 0.65, 0.8, 0.95)


@dataclass(frozen=True)
class Choice:
    """The quantizer of one Linear input: `scale` `[C]` divides it (None: nothing).

    error: relative, in output power. shift: per Linear that reads it, the mean output error `[out]` on the sample,
    which bias correction removes.
    """

    alpha: float | None
    scale: torch.Tensor | None
    quantizer: Affine
    error: float
    shift: tuple[torch.Tensor, ...]


def choose(seen: Observed, weights: list[torch.Tensor], scheme: QuantScheme) -> Choice:
    """Pick the alpha whose quantized output is nearest to the float one, for all its Linears `[out, C]`."""
    rows = seen.rows
    exact = [rows @ w.t() for w in weights]
    power = sum(float(y.square().mean()) for y in exact) or 1.0
    alphas = ALPHAS if scheme.equalize else (None,)
    return min((_try(a, rows, seen, weights, exact, power, scheme) for a in alphas), key=lambda c: c.error)


def _try(
    alpha: float | None,
    rows: torch.Tensor,
    seen: Observed,
    weights: list[torch.Tensor],
    exact: list[torch.Tensor],
    power: float,
    scheme: QuantScheme,
) -> Choice:
    scale = None if alpha is None else smoothing(seen, weights, alpha)
    scaled = rows if scale is None else rows / scale
    if scale is None:
        low, high = seen.low, seen.high
    else:
        low, high = float(scaled.min()), float(scaled.max())
    quantizer = search(scaled, low, high, scheme)
    rounded = fake_quantize(scaled, quantizer)
    shifts, error = [], 0.0
    for weight, y in zip(weights, exact, strict=True):
        w = dequantize_weight(*quantize_weight(weight if scale is None else weight * scale))
        difference = rounded @ w.t() - y
        shift = difference.mean(0)
        shifts.append(shift)
        error += float((difference - shift if scheme.correct_bias else difference).square().mean())
    return Choice(alpha, scale, quantizer, error / power, tuple(shifts))


def smoothing(seen: Observed, weights: list[torch.Tensor], alpha: float) -> torch.Tensor:
    """Scales `[C]`, geometric mean 1."""
    assert seen.peak is not None
    column = torch.stack([w.abs().amax(0) for w in weights]).amax(0)
    scale = seen.peak.clamp_min(1e-5) ** alpha / column.clamp_min(1e-5) ** (1 - alpha)
    return (scale / scale.log().mean().exp()).clamp(1e-4, 1e4)

"""Ranges: the scale and zero point of a tensor, from its calibration sample.

METHODS offers four; which one is right differs from tensor to tensor, so the quantizer tries them all and keeps the
one whose layers' outputs are nearest to the float ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from edgevit.export.float8 import dequantize_float8, quantize_float8
from edgevit.quant.scheme import Affine, QuantScheme

SAMPLE = 32767  # values the search looks at; from 32768 on torch uses threads, whose hand-over costs more than the work
TINY = 1e-8  # floor of a scale: a dead channel or constant tensor must not give 0
PERCENTILES = (99.9, 99.99, 99.999)
BINS = 2048
LEAST = {"silu": -0.27846455, "gelu": -0.16997121, "hardswish": -0.375, "relu": 0.0, "sigmoid": 0.0, "softmax": 0.0}
"""Smallest value of a function, by its operator: what a range needs at its lower end, and no more."""


def fake_quantize(x: torch.Tensor, q: Affine) -> torch.Tensor:
    """Quantize and dequantize, round half to even, as every backend does."""
    if q.float8:
        scale = torch.tensor(q.scale)
        return dequantize_float8(quantize_float8(x, scale), scale)
    return (torch.clamp(torch.round(x / q.scale) + q.zero_point, q.low, q.high) - q.zero_point) * q.scale


def affine(low: float, high: float, scheme: QuantScheme) -> Affine:
    """The quantizer of a range; 0 is always exactly representable.

    >>> affine(-1.0, 3.0, QuantScheme()).zero_point
    64
    >>> affine(-1.0, 3.0, QuantScheme(activations="int8")).zero_point
    0
    >>> affine(-1.0, 3.0, QuantScheme(activations="int8", affine=True)).zero_point
    -64
    """
    low, high = min(low, 0.0), max(high, 0.0)
    smallest, largest = scheme.range
    if scheme.symmetric:
        is_float8 = scheme.activations == "float8_e4m3fn"
        return Affine(max(max(-low, high) / largest, TINY), 0, smallest, largest, is_float8)
    scale = max((high - low) / (largest - smallest), TINY)
    return Affine(scale, smallest + round(-low / scale), smallest, largest)


def candidates(values: torch.Tensor, low: float, high: float, scheme: QuantScheme) -> dict[str, Affine]:
    """What each of the scheme's methods makes of `values` (any shape), whose whole range is [low, high]."""
    values = _sample(values)
    low, high = min(low, 0.0), max(high, 0.0)
    found = {}
    for name in scheme.ranges:
        ends = METHODS[name](values, low, high, scheme)
        found[name] = affine(max(low, min(ends[0], 0.0)), min(high, max(ends[1], 0.0)), scheme)
    return found


def search(values: torch.Tensor, low: float, high: float, scheme: QuantScheme) -> Affine:
    """The range inside [low, high] with the least squared error on `values` (any shape)."""
    return affine(*least_square(_sample(values), min(low, 0.0), max(high, 0.0), scheme), scheme)


def _sample(values: torch.Tensor) -> torch.Tensor:
    values = values.flatten()
    if len(values) <= SAMPLE:
        return values
    return values[torch.randint(0, len(values), (SAMPLE,), generator=torch.Generator().manual_seed(0))]


def least_square(values: torch.Tensor, low: float, high: float, scheme: QuantScheme) -> tuple[float, float]:
    """First both ends shrink together, then each end is refined alone around the best."""
    shrink = torch.linspace(0.2, 1.0, 33).tolist()
    best = _best(values, [(low * f, high * f) for f in shrink], scheme)
    if not scheme.symmetric:
        near = torch.linspace(0.6, 1.4, 9).tolist()
        ends = [(max(low, best[0] * a), min(high, best[1] * b)) for a in near for b in near]
        best = _best(values, ends, scheme)
    return best


def _best(values: torch.Tensor, ends: Sequence[tuple[float, float]], scheme: QuantScheme) -> tuple[float, float]:
    errors = [_error(values, affine(a, b, scheme)) for a, b in ends]
    return ends[min(range(len(ends)), key=errors.__getitem__)]


def _error(values: torch.Tensor, q: Affine) -> float:
    """Squared error of `fake_quantize` on values `[n]`, in fewer passes: a search spends its time here."""
    if q.float8:
        missing = fake_quantize(values, q) - values
    else:
        low, high = q.low - q.zero_point, q.high - q.zero_point
        missing = (values / q.scale).round_().clamp_(low, high).mul_(q.scale).sub_(values)
    return float(missing.dot(missing))


def min_max(values: torch.Tensor, low: float, high: float, scheme: QuantScheme) -> tuple[float, float]:
    """All that calibration saw."""
    return low, high


def percentile(values: torch.Tensor, low: float, high: float, scheme: QuantScheme) -> tuple[float, float]:
    """The least error among a few percentiles at both ends (RepQ-ViT, arXiv:2212.08254, section 4)."""
    cuts = [min(len(values) - 1, math.ceil(len(values) * (1 - p / 100))) for p in PERCENTILES]
    lowest, highest = (values.topk(max(cuts) + 1, largest=largest).values for largest in (False, True))
    return _best(values, [(min(float(lowest[c]), 0.0), max(float(highest[c]), 0.0)) for c in cuts], scheme)


def least_divergence(values: torch.Tensor, low: float, high: float, scheme: QuantScheme) -> tuple[float, float]:
    """The clipping whose histogram diverges least from the whole one (Migacz, "8-bit inference with TensorRT", 2017).

    Bins outside are counted at the ends; inside, bins that one integer stands for share their mean.
    """
    if high - low < TINY:
        return low, high
    counts = torch.histc(values, BINS, low, high)
    centres = low + (torch.arange(BINS) + 0.5) * (high - low) / BINS
    ends = [(low * shrink, high * shrink) for shrink in torch.linspace(0.3, 1.0, 29).tolist()]
    together = SAMPLE // BINS
    parts = [ends[start : start + together] for start in range(0, len(ends), together)]
    return ends[int(torch.cat([_divergences(counts, centres, part, scheme) for part in parts]).argmin())]


def _divergences(
    counts: torch.Tensor, centres: torch.Tensor, ends: Sequence[tuple[float, float]], scheme: QuantScheme
) -> torch.Tensor:
    """Of a histogram `[BINS]` clipped at each of the ends `[n]`."""
    grids = [affine(*end, scheme) for end in ends]
    scale, zero = (torch.tensor([[getattr(q, key)] for q in grids]) for key in ("scale", "zero_point"))
    below, above = torch.tensor(ends).T[..., None]
    smallest, largest = scheme.range
    level = (torch.clamp(torch.round(centres / scale) + zero, smallest, largest) - smallest).long()  # [n, BINS]
    inside = (centres >= below) & (centres <= above)
    first, last = inside.int().argmax(1, keepdim=True), BINS - 1 - inside.flip(1).int().argmax(1, keepdim=True)
    within, upto = counts * inside, counts.cumsum(0)
    reference = within.scatter_add(1, first, upto[first] - counts[first])
    reference = reference.scatter_add(1, last, upto[-1] - upto[last])
    filled = ((counts > 0) & inside).float()
    empty = torch.zeros(len(grids), int(largest - smallest) + 1)
    sums, used = empty.scatter_add(1, level, within), empty.scatter_add(1, level, filled)
    spread = (sums / used.clamp_min(1)).gather(1, level) * filled
    p = reference / reference.sum(1, keepdim=True)
    r = spread / spread.sum(1, keepdim=True).clamp_min(TINY)
    terms: torch.Tensor = p * (p.clamp_min(1e-12) / r.clamp_min(1e-12)).log()
    return terms.sum(1)


METHODS: dict[str, Callable[[torch.Tensor, float, float, QuantScheme], tuple[float, float]]] = {
    "mse": least_square,
    "minmax": min_max,
    "percentile": percentile,
    "kl": least_divergence,
}


def quantize_weight(weight: torch.Tensor, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `[out, ...]` → integers of the same shape, and scales `[out]`; symmetric, -127 to 127 for 8 bits.

    Below 8 bits each channel is clipped where that lessens its squared error.
    """
    largest = 2 ** (bits - 1) - 1
    rows = weight.flatten(1)
    scale = (rows.abs().amax(1) / largest).clamp_min(TINY)
    if bits < 8:
        shrunk = scale * torch.linspace(0.4, 1.0, 31)[:, None]  # [31, out]
        errors = torch.stack([
            ((rows / s[:, None]).round().clamp(-largest, largest) * s[:, None] - rows).square().sum(1) for s in shrunk
        ])  # fmt: skip
        scale = shrunk.gather(0, errors.argmin(0)[None])[0].clamp_min(TINY)
    shape = (-1, *[1] * (weight.ndim - 1))
    return torch.clamp(torch.round(weight / scale.reshape(shape)), -largest, largest).to(torch.int8), scale


def dequantize_weight(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The float weight an engine computes with. scale: `[out]`, or `[out, groups of inputs]`."""
    if scale.ndim == 2:
        return (values.float().reshape(*scale.shape, -1) * scale[..., None]).reshape(values.shape)
    return values.float() * scale.reshape(-1, *[1] * (values.ndim - 1))

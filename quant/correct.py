"""Corrections of a layer's weight and bias for the error of quantization; each is kept only if it helps.

Both are fitted on some images and judged on others.

- Compensation (ERQ's Aqer, Zhong et al., 2024, arXiv:2407.06794, section 4.1): with quantized inputs A and float
  outputs Y, the ridge regression W + argmin |Y - A(W + D)|² + lambda |D|².
- Bias correction (Nagel et al., 2019, arXiv:1906.04721, section 4.2), empirical and in program order: b - E[ŷ - y].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from edgevit.quant.equalize import Choice
from edgevit.quant.gptq import DAMPINGS, curvature, gptq
from edgevit.quant.layers import Layer
from edgevit.quant.ranges import dequantize_weight, fake_quantize
from edgevit.quant.scheme import QuantScheme
from edgevit.quant.streams import Values, distance
from edgevit.quant.weights import round_weight

ROWS = 4096  # rows that a regression is fitted on
RIDGES = (1e-3, 1e-2, 1e-1)
"""Regularization, relative to the mean power of an input channel."""
MARGIN = 0.995
"""A step must bring the error, on images it was not fitted on, below this share of what it was, or it is undone."""


@dataclass
class Quantized:
    """A layer with its integers.

    weight: float, before rounding, behind the equalization. steps: error before and after each correction.
    """

    layer: Layer
    choice: Choice | None
    weight: torch.Tensor
    integers: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None
    steps: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def rounded(self) -> torch.Tensor:
        """The float weight an engine computes with."""
        return dequantize_weight(self.integers, self.scale)

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer multiplies with: quantized and back, unless activations stay float."""
        if self.choice is None:
            return x
        return fake_quantize(self.choice.equalization.apply(x, self.layer), self.choice.quantizer)

    def outputs(self, inputs: Values) -> Values:
        """What the layer makes of inputs that are quantized already."""
        weight = self.rounded
        return [self.layer(value, weight, self.bias) for value in inputs]

    def take(self, proposal: Proposal, scheme: QuantScheme) -> None:
        """Another weight and bias; the weight is rounded anew."""
        weight, self.bias = proposal
        if weight is not self.weight:
            self.weight = weight
            self.integers, self.scale = round_weight(weight, scheme)


def start(layer: Layer, choice: Choice | None, scheme: QuantScheme) -> Quantized:
    """Rounded to nearest, not corrected."""
    weight = layer.weight if choice is None else choice.equalization.weight(layer)
    bias = layer.bias if choice is None else choice.equalization.bias(layer)
    return Quantized(layer, choice, weight, *round_weight(weight, scheme), bias)


def correct(quantized: Quantized, x: Values, want: Values, scheme: QuantScheme) -> Values:
    """Apply the scheme's corrections, and return the outputs. x: quantized inputs; want: float outputs."""
    inputs = [quantized.inputs(value) for value in x]
    if scheme.compensate and quantized.layer.is_matrix:
        _improve("compensate", _regressions, quantized, inputs, want, scheme)
    if scheme.gptq and quantized.scale.ndim == 2:
        _round_in_turn(quantized, inputs, scheme)
    if scheme.correct_bias:
        _improve("bias", _mean_error, quantized, inputs, want, scheme)
    return quantized.outputs(inputs)


Proposal = tuple[torch.Tensor, torch.Tensor | None]
"""A weight (float, before rounding) and a bias."""
Fit = Callable[[Quantized, Values, Values], list[Proposal]]


def _improve(name: str, fit: Fit, quantized: Quantized, inputs: Values, want: Values, scheme: QuantScheme) -> None:
    """Fit on every other image, judge on the rest; what wins is fitted again on all, what does not is undone."""
    start, proposals = (quantized.weight, quantized.bias), fit(quantized, inputs[::2], want[::2])
    judged, truth = inputs[1::2] or inputs, want[1::2] or want
    before, errors = distance(quantized.outputs(judged), truth), []
    for proposal in proposals:
        quantized.take(proposal, scheme)
        errors.append(distance(quantized.outputs(judged), truth))
    quantized.take(start, scheme)
    best = min(range(len(errors)), key=errors.__getitem__)
    quantized.steps[name] = before, errors[best]
    if errors[best] < MARGIN * before:
        quantized.take(fit(quantized, inputs, want)[best], scheme)


def _round_in_turn(quantized: Quantized, inputs: Values, scheme: QuantScheme) -> None:
    """GPTQ in place of rounding to nearest, at the damping that serves images it was not fitted on, if any does.

    Judged by what the weight gives before it is rounded: what the inputs have lost on their way would drown it.
    """
    judged = inputs[1::2] or inputs
    truth = [quantized.layer(value, quantized.weight, quantized.bias) for value in judged]
    nearest = quantized.integers, quantized.scale
    before, errors, hessian = distance(quantized.outputs(judged), truth), [], curvature(inputs[::2])
    for damping in DAMPINGS:
        quantized.integers, quantized.scale = gptq(quantized.weight, hessian, damping, scheme)
        errors.append(distance(quantized.outputs(judged), truth))
    best = min(range(len(errors)), key=errors.__getitem__)
    quantized.steps["gptq"] = before, errors[best]
    quantized.integers, quantized.scale = nearest
    if errors[best] < MARGIN * before:
        hessian = curvature(inputs)
        quantized.integers, quantized.scale = gptq(quantized.weight, hessian, DAMPINGS[best], scheme)


def _mean_error(quantized: Quantized, inputs: Values, want: Values) -> list[Proposal]:
    error = torch.cat([quantized.layer.rows(g - w) for g, w in zip(quantized.outputs(inputs), want, strict=True)])
    shift = error.mean(0)
    return [(quantized.weight, -shift if quantized.bias is None else quantized.bias - shift)]


def _regressions(quantized: Quantized, inputs: Values, want: Values) -> list[Proposal]:
    """One proposal for each of RIDGES, all on one sample of at most ROWS rows."""
    layer, take = quantized.layer, max(1, ROWS // len(inputs))
    generator = torch.Generator().manual_seed(0)
    a, y = [], []
    for value, got, wanted in zip(inputs, quantized.outputs(inputs), want, strict=True):
        rows, missing = layer.rows(value), layer.rows(wanted - got)
        if len(rows) > take:
            chosen = torch.randperm(len(rows), generator=generator)[:take]
            rows, missing = rows[chosen], missing[chosen]
        a.append(rows)
        y.append(missing)
    ones = torch.cat([torch.cat(a), torch.ones(sum(map(len, a)), 1)], dim=1).double()
    gram, goal = ones.t() @ ones, ones.t() @ torch.cat(y).double()
    found: list[Proposal] = []
    for ridge in RIDGES:
        weighed = gram.clone()
        weighed.diagonal()[:-1].add_(gram.diagonal()[:-1].mean().clamp_min(1e-12) * ridge)
        weighed.diagonal()[-1].add_(1e-6 * len(ones))
        step = torch.linalg.solve(weighed, goal).float()
        moved = quantized.weight + step[:-1].t().reshape(quantized.weight.shape)
        found.append((moved, step[-1] if quantized.bias is None else quantized.bias + step[-1]))
    return found

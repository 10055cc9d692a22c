"""Corrections of a layer's weight and bias for the error of quantization; each is kept only if it helps.

Both are fitted on some images and judged on others.

- Compensation (ERQ's Aqer, Zhong et al., 2024, arXiv:2407.06794, section 4.1): with quantized inputs A and float
  outputs Y, the ridge regression W + argmin |Y - A(W + D)|² + lambda |D|².
- Bias correction (Nagel et al., 2019, arXiv:1906.04721, section 4.2), empirical and in program order: b - E[ŷ - y].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional

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
JUDGED = 4
"""One image in so many is not fitted on; they judge the step."""
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

    def limit(self, scheme: QuantScheme) -> int:
        """Largest integer of the weight; only what is stored in groups has fewer than 8 bits in a grouped scheme."""
        bits = 8 if scheme.group and self.scale.ndim == 1 else scheme.weight_bits
        return int(2 ** (bits - 1) - 1)

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer multiplies with: quantized and back, unless activations stay float."""
        if self.choice is None:
            return x
        return fake_quantize(self.choice.equalization.apply(x, self.layer), self.choice.quantizer)

    def outputs(self, inputs: Values) -> Values:
        """What the layer makes of inputs that are quantized already."""
        weight = self.rounded
        return [self.layer(value, weight, self.bias) for value in inputs]

    def take(self, weight: torch.Tensor, bias: torch.Tensor | None, scheme: QuantScheme) -> None:
        """Another weight and bias; the weight is rounded anew."""
        self.bias = bias
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
        _compensate(quantized, inputs, want, scheme)
    if scheme.gptq and quantized.scale.ndim == 2:
        _round_in_turn(quantized, inputs, scheme)
    outputs = quantized.outputs(inputs)
    return _without_mean_error(quantized, outputs, want) if scheme.correct_bias else outputs


def parted(values: Values) -> tuple[Values, Values]:
    """What a step is fitted on, and what it is judged on: the same where there are fewer than JUDGED."""
    fitted = [value for index, value in enumerate(values) if index % JUDGED != JUDGED - 1]
    return fitted, values[JUDGED - 1 :: JUDGED] or fitted


def _compensate(quantized: Quantized, inputs: Values, want: Values, scheme: QuantScheme) -> None:
    start, (fitted, judged), (known, truth) = (quantized.weight, quantized.bias), parted(inputs), parted(want)
    before, errors = distance(quantized.outputs(judged), truth), []
    for weight, bias in _regressions(quantized, fitted, known):
        quantized.take(weight, bias, scheme)
        errors.append(distance(quantized.outputs(judged), truth))
    quantized.take(*start, scheme)
    best = min(range(len(errors)), key=errors.__getitem__)
    quantized.steps["compensate"] = before, errors[best]
    if errors[best] < MARGIN * before:
        quantized.take(*_regressions(quantized, inputs, want)[best], scheme)


def _round_in_turn(quantized: Quantized, inputs: Values, scheme: QuantScheme) -> None:
    """GPTQ in place of rounding to nearest, at the damping that serves images it was not fitted on, if any does.

    Judged by what the weight gives before it is rounded: what the inputs have lost on their way would drown it.
    """
    fitted, judged = parted(inputs)
    truth = [quantized.layer(value, quantized.weight, quantized.bias) for value in judged]
    nearest, hessian = (quantized.integers, quantized.scale), curvature(fitted)
    before, errors = distance(quantized.outputs(judged), truth), []
    for damping in DAMPINGS:
        quantized.integers, quantized.scale = gptq(quantized.weight, hessian, damping, scheme)
        errors.append(distance(quantized.outputs(judged), truth))
    best = min(range(len(errors)), key=errors.__getitem__)
    quantized.steps["gptq"] = before, errors[best]
    quantized.integers, quantized.scale = nearest
    if errors[best] < MARGIN * before:
        hessian = curvature(inputs)
        quantized.integers, quantized.scale = gptq(quantized.weight, hessian, DAMPINGS[best], scheme)


def _without_mean_error(quantized: Quantized, outputs: Values, want: Values) -> Values:
    layer = quantized.layer

    def moved(values: Values, by: torch.Tensor) -> Values:
        return [value - layer.channels(by) for value in values]

    def mean_error(got: Values, truth: Values) -> torch.Tensor:
        return torch.cat([layer.rows(g - w) for g, w in zip(got, truth, strict=True)]).mean(0)

    (fitted, judged), (known, truth) = parted(outputs), parted(want)
    before, after = distance(judged, truth), distance(moved(judged, mean_error(fitted, known)), truth)
    quantized.steps["bias"] = before, after
    if after >= MARGIN * before:
        return outputs
    shift = mean_error(outputs, want)
    quantized.bias = -shift if quantized.bias is None else quantized.bias - shift
    return moved(outputs, shift)


def _regressions(quantized: Quantized, inputs: Values, want: Values) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A weight, before rounding, and a bias for each of RIDGES, all on one sample of at most ROWS rows."""
    layer, take = quantized.layer, max(1, ROWS // len(inputs))
    generator = torch.Generator().manual_seed(0)
    a, y = [], []
    for value, wanted in zip(inputs, want, strict=True):
        rows, truth = layer.rows(value), layer.rows(wanted)
        chosen = torch.randperm(len(rows), generator=generator)[:take]
        a.append(rows[chosen])
        y.append(truth[chosen])
    rows = torch.cat(a)
    missing = torch.cat(y) - functional.linear(rows, quantized.rounded.flatten(1), quantized.bias)
    ones = torch.cat([rows, torch.ones(len(rows), 1)], dim=1).double()
    gram, goal = ones.t() @ ones, ones.t() @ missing.double()
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for ridge in RIDGES:
        weighed = gram.clone()
        weighed.diagonal()[:-1].add_(gram.diagonal()[:-1].mean().clamp_min(1e-12) * ridge)
        weighed.diagonal()[-1].add_(1e-6 * len(ones))
        step = torch.linalg.solve(weighed, goal).float()
        moved = quantized.weight + step[:-1].t().reshape(quantized.weight.shape)
        found.append((moved, step[-1] if quantized.bias is None else quantized.bias + step[-1]))
    return found

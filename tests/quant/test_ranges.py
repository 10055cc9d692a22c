"""Scales and zero points: what every backend relies on."""

import math

import pytest
import torch

from edgevit.quant.ranges import affine, dequantize_weight, fake_quantize, quantize_weight, search
from edgevit.quant.scheme import QuantScheme

SCHEMES = {"uint8": QuantScheme(activations="uint8"), "int8": QuantScheme(activations="int8")}


def drawn(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(64, 48, generator=generator)
    return {
        "normal": normal,
        "heavy tail": normal**5,
        "one outlier": torch.cat([normal.flatten(), torch.tensor([200.0])]),
        "one sided": normal.abs(),
        "negative": -normal.abs() - 3,
        "gelu": torch.nn.functional.gelu(normal * 3),
        "offset": normal + 10,
        "tiny": normal * 1e-6,
        "huge": normal * 1e6,
        "uniform": torch.rand(64, 48, generator=generator),
    }[kind]


KINDS = ["normal", "heavy tail", "one outlier", "one sided", "negative", "gelu", "offset", "tiny", "huge", "uniform"]


def error(values, quantizer):
    return float((fake_quantize(values, quantizer) - values).double().square().mean())


@pytest.mark.parametrize("activations", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_searched_range_is_never_worse_than_min_max(kind, activations, seed):
    values, scheme = drawn(kind, seed), SCHEMES[activations]
    low, high = float(values.min()), float(values.max())
    found = error(values, search(values, low, high, scheme))
    assert found <= error(values, affine(low, high, scheme)) * (1 + 1e-6)  # the float32 mean of the search itself


@pytest.mark.parametrize("activations", SCHEMES)
def test_the_searched_range_clips_where_that_pays(activations):
    values, scheme = torch.randn(200_000, generator=torch.Generator().manual_seed(0)), SCHEMES[activations]
    low, high = float(values.min()), float(values.max())  # about 4.5 standard deviations; 4 give the least error
    assert error(values, search(values, low, high, scheme)) < 0.97 * error(values, affine(low, high, scheme))


@pytest.mark.parametrize("activations", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_is_exact_and_scale_and_zero_point_are_valid(kind, activations):
    values, scheme = drawn(kind), SCHEMES[activations]
    q = search(values, float(values.min()), float(values.max()), scheme)
    assert math.isfinite(q.scale)
    assert q.scale > 0
    assert type(q.zero_point) is int
    assert q.low <= q.zero_point <= q.high
    assert (q.low, q.high) == ((0, 255) if activations == "uint8" else (-128, 127))
    assert activations == "uint8" or q.zero_point == 0
    assert fake_quantize(torch.zeros(1), q).item() == 0.0


@pytest.mark.parametrize("activations", SCHEMES)
@pytest.mark.parametrize("value", [0.0, 3.5, -3.5, 1e-12, 1e-30, -1e-30])
def test_a_constant_activation_gives_a_finite_positive_scale(value, activations):
    values = torch.full((100,), value)
    q = search(values, value, value, SCHEMES[activations])
    assert math.isfinite(q.scale)
    assert q.scale > 0
    assert q.low <= q.zero_point <= q.high
    # half a step at most, and a constant on the range's end is met to rounding
    assert (fake_quantize(values, q) - values).abs().max() <= max(q.scale / 2, 1e-6 * abs(value))


def test_weights_are_symmetric_per_output_channel():
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-3, 1.0, 10.0, 0.1, 1e3]
    ).reshape(5, 1, 1, 1)
    values, scale = quantize_weight(weight)
    assert values.dtype == torch.int8
    assert values.shape == weight.shape
    assert scale.shape == (5,)
    assert values.min() >= -127  # -128 has no mirror image
    assert values.flatten(1).abs().amax(1).tolist() == [127] * 5
    torch.testing.assert_close(scale, weight.flatten(1).abs().amax(1) / 127)
    off = (dequantize_weight(values, scale) - weight).abs().flatten(1).amax(1)
    assert (off <= scale * 0.5001).all()  # rounded to the nearest step of its own channel
    mirrored, same = quantize_weight(-weight)
    assert torch.equal(mirrored, -values)
    assert torch.equal(same, scale)


def test_a_dead_weight_row_gives_a_finite_positive_scale_and_zeros():
    weight = torch.randn(4, 8)
    weight[2] = 0
    values, scale = quantize_weight(weight)
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert values[2].eq(0).all()
    assert dequantize_weight(values, scale)[2].eq(0).all()

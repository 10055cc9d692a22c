"""Weights as they are stored: in groups of inputs, as 8-bit floats, and rounded by GPTQ."""

from dataclasses import replace

import pytest
import torch

from edgevit.errors import QuantError
from edgevit.quant.gptq import curvature, gptq
from edgevit.quant.ranges import dequantize_weight, quantize_weight
from edgevit.quant.scheme import OTHERS, QuantScheme
from edgevit.quant.weights import round_weight, ungrouped

W4 = QuantScheme(activations=None, weight_bits=4, group=32)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_each_group_is_rounded_as_if_it_were_a_channel_alone():
    weight = drawn(6, 96) * torch.logspace(-2, 2, 96)
    values, scale = round_weight(weight, W4)
    assert (values.shape, scale.shape) == ((6, 96), (6, 3))
    assert values.dtype == torch.int8
    assert values.abs().max() == 7  # -8 has no mirror image
    for row in range(6):
        for group in range(3):
            part = slice(32 * group, 32 * group + 32)
            alone, step = quantize_weight(weight[row : row + 1, part], 4)
            assert torch.equal(values[row, part], alone[0])
            assert torch.equal(dequantize_weight(values, scale)[row, part], alone[0] * step)


@pytest.mark.parametrize(("shape", "reason"), [
    ((8, 48), "its 48 inputs are no multiple of 32; 8 bits per output channel instead"),
    ((8, 32, 1, 1), "a convolution has no groups of inputs; 8 bits per output channel instead"),
])  # fmt: skip
def test_what_does_not_fit_into_groups_has_8_bits_and_a_reason(shape, reason):
    weight = drawn(*shape)
    assert ungrouped(weight, W4) == reason
    for got, want in zip(round_weight(weight, W4), quantize_weight(weight, 8), strict=True):
        assert torch.equal(got, want)


def test_8_bit_floats_use_their_whole_range_in_each_output_channel():
    weight = drawn(5, 7, 3, 3) * torch.logspace(-3, 3, 5).reshape(5, 1, 1, 1)
    weight[2] = 0
    values, scale = round_weight(weight, OTHERS["fp8"])
    assert values.dtype == torch.float8_e4m3fn
    assert scale.shape == (5,)
    assert values.float().abs().flatten(1).amax(1).tolist() == [448, 448, 0, 448, 448]
    error = (dequantize_weight(values, scale) - weight).abs()
    # 3 bits of mantissa: half a unit in the last place is a sixteenth; below 2^-6 steps are 2^-9 of the scale
    limit = torch.maximum(weight.abs() / 16, scale.reshape(5, 1, 1, 1) * 2**-10)
    assert (error <= limit * 1.0001).all()


DAMPING = 0.01


def plain_gptq(weight, x, bits, group):
    """A row at a time from the definition: the inputs not yet rounded are refitted by their normal equations."""
    largest = 2 ** (bits - 1) - 1
    hessian = 2 * x.double().t() @ x.double()
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    integers, scales = torch.zeros_like(weight, dtype=torch.int8), []
    rest = weight.double().clone()
    for column in range(weight.shape[1]):
        if column % group == 0:
            scales.append(quantize_weight(rest[:, column : column + group].float(), bits)[1])
        rounded = (rest[:, column] / scales[-1]).round().clamp(-largest, largest)
        integers[:, column] = rounded.to(torch.int8)
        error = rest[:, column] - rounded * scales[-1]
        later = slice(column + 1, None)
        pull = torch.linalg.solve(hessian[later, later], hessian[later, column])
        rest[:, later] += error[:, None] * pull
    return integers, torch.stack(scales, 1)


def test_gptq_is_least_squares_over_the_inputs_that_follow():
    x, weight = drawn(200, 32) @ drawn(32, 32, seed=1), drawn(9, 32, seed=2)
    hessian = curvature([x[:80].reshape(2, 40, 32), x[80:]])
    got = gptq(weight, hessian, DAMPING, replace(W4, group=16))
    for mine, plain in zip(got, plain_gptq(weight, x, 4, 16), strict=True):
        assert torch.equal(mine, plain)


def test_gptq_lessens_the_output_error_and_bears_inputs_that_are_always_0():
    x, weight = drawn(400, 64) @ drawn(64, 64, seed=1), drawn(16, 64, seed=2)
    x[:, 5] = 0
    want = x @ weight.t()

    def error(values, scale):
        return (x @ dequantize_weight(values, scale).t() - want).square().mean()

    # half on these correlated inputs; a wrong order or sign of the feedback gives more error than rounding to nearest
    assert error(*gptq(weight, curvature([x]), DAMPING, W4)) < 0.7 * error(*round_weight(weight, W4))


@pytest.mark.parametrize(("options", "text"), [
    ({"weights": "float8_e4m3fn", "group": 32}, "one scale per output channel; drop the groups"),
    ({"weights": "float8_e4m3fn", "weight_bits": 4}, "have 8 bits"),
    ({"gptq": True}, r"gptq rounds weights in groups; set group \(32, 64, 128\)"),
    ({"activations": "float8_e4m3fn"}, "for float8_e4m3fn use minmax, mse or percentile"),
])  # fmt: skip
def test_what_a_scheme_cannot_mean_is_refused(options, text):
    with pytest.raises(QuantError, match=text):
        QuantScheme(**options)

"""Equalization: an exact change of scale, chosen by error, which may be none."""

import torch

from edgevit.quant import equalize
from edgevit.quant.calibrate import Observed
from edgevit.quant.equalize import choose, smoothing
from edgevit.quant.scheme import QuantScheme


def observed(rows):
    seen = Observed()
    seen.low, seen.high, seen.peak = float(rows.min()), float(rows.max()), rows.abs().amax(0)
    seen.kept.append(rows)
    return seen


def drawn(loud=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(256, 16, generator=generator)
    rows[:, 5] *= loud
    return rows, [torch.randn(8, 16, generator=generator), torch.randn(4, 16, generator=generator)]


def test_rescaled_product_is_exact_before_rounding():
    rows, weights = drawn(loud=50)
    for alpha in (a for a in equalize.ALPHAS if a is not None):
        scale = smoothing(observed(rows), weights, alpha)
        assert (scale > 0).all()
        assert torch.isfinite(scale).all()
        for weight in weights:
            want = rows @ weight.t()
            got = (rows / scale) @ (weight * scale).t()
            assert (got - want).abs().max() < 1e-5 * want.abs().max()  # float32 rounding of 16 terms


def test_a_loud_channel_is_equalized_and_the_error_falls():
    rows, weights = drawn(loud=100)
    on = choose(observed(rows), weights, QuantScheme())
    off = choose(observed(rows), weights, QuantScheme(equalize=False))
    assert on.alpha is not None
    assert on.scale[5] == on.scale.max()
    assert off.alpha is None
    assert off.scale is None
    assert on.error < 0.25 * off.error


def test_off_is_chosen_when_every_alpha_is_worse(monkeypatch):
    def harmful(seen, weights, alpha):
        return torch.logspace(-3, 3, 16)  # makes one channel loud instead of quiet

    monkeypatch.setattr(equalize, "smoothing", harmful)
    rows, weights = drawn()
    choice = choose(observed(rows), weights, QuantScheme())
    assert choice.alpha is None
    assert choice.scale is None


def test_the_choice_is_never_worse_than_off():
    for seed in range(4):
        for loud in (1.0, 10.0, 1000.0):
            rows, weights = drawn(loud, seed)
            seen = observed(rows)
            on, off = (choose(seen, weights, QuantScheme(equalize=value)) for value in (True, False))
            assert on.error <= off.error


def test_dead_channels_give_finite_positive_scales():
    rows, weights = drawn(loud=100)
    rows[:, 3] = 0
    for weight in weights:
        weight[:, 7] = 0
    weights[0][2] = 0
    choice = choose(observed(rows), weights, QuantScheme())
    assert torch.isfinite(choice.scale).all()
    assert (choice.scale > 0).all()
    assert choice.error < 0.01


def test_all_zero_input_and_weights_give_a_finite_choice():
    choice = choose(observed(torch.zeros(64, 16)), [torch.zeros(8, 16)], QuantScheme())
    assert choice.error == 0
    assert choice.quantizer.scale > 0


def test_shift_is_the_mean_output_error_of_each_reader():
    rows, weights = drawn(loud=30)
    choice = choose(observed(rows), weights, QuantScheme(equalize=False))
    for weight, shift in zip(weights, choice.shift, strict=True):
        quantized = equalize.fake_quantize(rows, choice.quantizer)
        rounded = equalize.dequantize_weight(*equalize.quantize_weight(weight))
        want = (quantized @ rounded.t() - rows @ weight.t()).mean(0)
        torch.testing.assert_close(shift, want, rtol=1e-4, atol=1e-6)  # a mean of 256 float32 differences

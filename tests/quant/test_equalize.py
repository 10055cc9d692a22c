"""Equalization: an exact change of scale and offset, chosen by error, which may be none."""

import pytest
import torch
from torch import nn

from edgevit.quant import equalize
from edgevit.quant.equalize import Equalization, choose
from edgevit.quant.layers import find
from edgevit.quant.observe import Observed
from edgevit.quant.scheme import QuantScheme


def observed(rows):
    seen = Observed()
    seen.see(rows, 0, None)
    seen.kept.append(rows)
    return seen


def drawn(loud=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(256, 16, generator=generator)
    rows[:, 5] *= loud
    return rows, [torch.randn(8, 16, generator=generator), torch.randn(4, 16, generator=generator)]


class Readers(nn.Module):
    """Layers that read what `front` makes of the input."""

    def __init__(self, layers, front):
        super().__init__()
        self.layers, self.front = nn.ModuleList(layers), front

    def forward(self, x):
        x = self.front(x)
        return [layer(x) for layer in self.layers]


def grouped(layers, shape, front=torch.neg):
    """The group of layers, as the quantizer finds it in a program."""
    module = torch.export.export(Readers(layers, front).eval(), (torch.zeros(shape),)).module()
    (group,), _ = find(module)
    return group


def linears(weights, front=torch.neg):
    layers = [nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data = weight.clone()
    return grouped(layers, (1, 4, weights[0].shape[1]), front)


def chosen(rows, weights, **options):
    return choose(linears(weights), observed(rows), rows, QuantScheme(**options), free=True, centre=True)


def offers(rows, weights):
    return list(equalize._offers(linears(weights), observed(rows), True))


def test_every_candidate_is_exact_before_rounding():
    rows, weights = drawn(loud=50)
    rows[:, 2] += 30
    group = linears(weights)
    names = set()
    for way in offers(rows, weights):
        names.add(way.name)
        for layer in group.layers:
            want = rows @ layer.weight.t()
            got = way.apply(rows, layer) @ way.weight(layer).t()
            if way.centre is not None:
                got = got + way.bias(layer)
            assert (got - want).abs().max() < 1e-5 * want.abs().max()  # float32 rounding of 16 terms
    assert {"smooth 0.5", "centre, smooth 0.5", "repq"} <= names


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_convolution_is_rescaled_by_its_own_input_channels(groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 12, 3, padding=1, groups=groups)
    layer = grouped([conv], (1, 6, 8, 8)).layers[0]
    way = Equalization("test", torch.linspace(0.1, 9, 6))
    maps = torch.randn(2, 6, 8, 8)
    want = conv(maps)
    got = layer(way.apply(maps, layer), way.weight(layer), way.bias(layer))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert layer.column_peak().shape == (6,)


def test_repq_gives_every_channel_the_same_range():
    rows, weights = drawn(loud=20)
    rows[:, 2] += 30
    way = next(way for way in offers(rows, weights) if way.name == "repq")
    moved = way.apply(rows, linears(weights).layers[0])
    torch.testing.assert_close(moved.amax(0), -moved.amin(0), rtol=1e-4, atol=1e-4)  # centred
    assert moved.amax(0).max() < 1.01 * moved.amax(0).min()


def test_a_loud_channel_is_equalized_and_the_error_falls():
    rows, weights = drawn(loud=100)
    on, off = chosen(rows, weights), chosen(rows, weights, equalize=False)
    assert on.equalization.scale[5] == on.equalization.scale.max()
    assert off.equalization == Equalization()
    assert on.error < 0.25 * off.error


def test_off_is_chosen_when_every_candidate_is_worse(monkeypatch):
    harmful = Equalization("harmful", torch.logspace(-3, 3, 16))  # makes one channel loud instead of quiet
    monkeypatch.setattr(equalize, "_offers", lambda *_: [harmful])
    assert chosen(*drawn()).equalization == Equalization()


@pytest.mark.parametrize(("pays", "taken"), [(1.0, True), (0.1, False)])
def test_a_rescale_that_costs_an_operator_must_pay(monkeypatch, pays, taken):
    monkeypatch.setattr(equalize, "PAYS", pays)
    rows, weights = drawn(loud=1.5)  # the best rescale leaves about three quarters of the error
    group, seen = linears(weights), observed(rows)
    assert choose(group, seen, rows, QuantScheme(), free=True).equalization.scale is not None
    assert (choose(group, seen, rows, QuantScheme(), free=False).equalization.scale is not None) == taken


def test_the_choice_is_never_worse_than_off():
    for seed in range(4):
        for loud in (1.0, 10.0, 1000.0):
            rows, weights = drawn(loud, seed)
            assert chosen(rows, weights).error <= chosen(rows, weights, equalize=False).error


def test_dead_channels_give_finite_positive_scales():
    rows, weights = drawn(loud=100)
    rows[:, 3] = 0
    for weight in weights:
        weight[:, 7] = 0
    weights[0][2] = 0
    choice = chosen(rows, weights)
    assert torch.isfinite(choice.equalization.scale).all()
    assert (choice.equalization.scale > 0).all()
    assert choice.error < 0.01


def test_all_zero_input_and_weights_give_a_finite_choice():
    choice = chosen(torch.zeros(64, 16), [torch.zeros(8, 16)])
    assert choice.error == 0
    assert choice.quantizer.scale > 0


@pytest.mark.parametrize(
    ("front", "least"), [(torch.relu, 0.0), (nn.functional.silu, -0.27846), (nn.functional.gelu, -0.16997)]
)
def test_the_lower_end_is_pinned_to_what_the_function_guarantees(front, least):
    rows, weights = drawn()
    group, seen = linears(weights, front), observed(front(rows) * 3)
    q = choose(group, seen, front(rows), QuantScheme(equalize=False)).quantizer
    assert abs(-q.zero_point * q.scale - least) <= q.scale / 2  # the zero point is a whole number
    assert choose(group, seen, front(rows), QuantScheme(equalize=False, activations="int8")).quantizer.zero_point == 0

"""Block reconstruction: units learned in place give what they gave in float, and what does not help is undone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.errors import QuantError
from edgevit.export.trace import trace
from edgevit.quant.apply import apply
from edgevit.quant.calibration import calibrate, chosen
from edgevit.quant.scheme import QuantScheme
from edgevit.stages import InputSpec

IMAGES = 24
PLAIN = QuantScheme(weight_bits=3, ranges=("minmax",), equalize=False, compensate=False)
LEARNED = replace(PLAIN, reconstruct=60)


class Blocks(nn.Module):
    """A convolution, a convolutional residual block, a feed-forward one behind a norm, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        """Images `[B, 3, 32, 32]` → `[B, 10]`."""
        x = self.stem(x)
        x = x + self.conv2(self.conv1(x).relu_())
        x = x.flatten(2).transpose(1, 2)
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))
        return self.head(x.mean(1))


@pytest.fixture(scope="module")
def blocks():
    """The model, calibrated, and its float outputs on further images of the same kind."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = Blocks().eval(), torch.randn(IMAGES + 16, 3, 32, 32).cumsum(-1) / 4
    graph = trace(model, InputSpec(1, 32, 32))
    with torch.no_grad():
        want = model(images[IMAGES:])
    batches = [image[None].numpy() for image in images[:IMAGES]]
    return calibrate(graph, PLAIN, (), batches, IMAGES), images[IMAGES:], want


def applied(calibration, scheme):
    """The program quantized by another scheme."""
    return apply(chosen(calibration, scheme))


def error(graph, images, want):
    module = graph.program.module()
    with torch.no_grad():
        got = torch.cat([module(image[None]) for image in images])
    return float((got - want).norm() / want.norm())


def test_learned_blocks_are_nearer_on_images_that_nobody_learned_from(blocks):
    calibration, images, want = blocks
    learned = applied(calibration, LEARNED)
    # at 3 bits nearly all of the error is the weights' rounding, which was to nearest: a fifth of it must go
    assert error(learned, images, want) < 0.8 * error(applied(calibration, PLAIN), images, want)
    steps = [step["reconstruct"] for row in learned.log for step in row["steps"].values()]
    assert len(steps) == len([n for row in learned.log for n in row["layers"]])
    assert any(after < before for before, after in steps)


def test_the_same_images_give_the_same_bytes(blocks):
    calibration, _, _ = blocks
    scheme = replace(LEARNED, reconstruct=3)
    first, second = (applied(calibration, scheme).program.state_dict for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_does_not_help_is_undone(blocks, monkeypatch):
    calibration, images, want = blocks
    monkeypatch.setattr(
        "edgevit.quant.reconstruct.RATES", {"weight": 50.0, "bias": 50.0, "scale": 1.0, "channels": 1.0}
    )
    ruined = applied(calibration, replace(LEARNED, reconstruct=3))
    plain = applied(calibration, PLAIN)
    assert error(ruined, images, want) == error(plain, images, want)
    assert all(
        after > before for row in ruined.log for before, after in [s["reconstruct"] for s in row["steps"].values()]
    )


def test_learned_rescales_move_into_norms_and_layers(blocks):
    """QADS: the channels' factors are folded, so no operator is added, and the program is still near the float one."""
    calibration, images, want = blocks
    scheme = replace(LEARNED, qads=True)
    learned = applied(calibration, scheme)
    assert any(row["equalization"].endswith("learned") for row in learned.log)
    plain = applied(calibration, PLAIN)
    count = lambda graph: sum(n.op == "call_function" for n in graph.program.graph.nodes)  # noqa: E731
    assert count(learned) == count(plain)
    assert error(learned, images, want) < 0.8 * error(plain, images, want)


def test_integers_stay_inside_their_bits(blocks):
    calibration, _, _ = blocks
    program = applied(calibration, replace(LEARNED, reconstruct=10)).program
    state = program.constants | program.state_dict
    integers = [value for value in state.values() if isinstance(value, torch.Tensor) and value.dtype is torch.int8]
    assert integers
    assert max(int(np.abs(value.numpy().astype(int)).max()) for value in integers) <= 3


def test_floats_are_not_learned():
    with pytest.raises(QuantError, match="reconstruct learns integers"):
        QuantScheme(activations="float8_e4m3fn", weights="float8_e4m3fn", reconstruct=10)

"""Calibration: bounded memory, whole-range minima and maxima, the same sample every time."""

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.errors import QuantError
from edgevit.export.trace import trace
from edgevit.quant.observe import ROWS, observe
from edgevit.stages import InputSpec

SPEC = InputSpec(1, 2, 2)


@pytest.fixture(scope="module")
def program():
    """images `[1, 3, 2, 2]` → rows `[1, 4, 3]` → Linear."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, images):
            return self.linear(images.flatten(2).transpose(1, 2))

    module = trace(Rows().eval(), SPEC).program.module()
    linear = next(n for n in module.graph.nodes if n.target is torch.ops.aten.linear.default)
    return module, linear.args[0]


def stream(count):
    """Image i is filled with i, so a sampled row tells where it came from."""
    return (np.full(SPEC.shape, i, np.float32) for i in range(count))


@pytest.mark.parametrize("count", [1, 2, 7, 300, ROWS - 1, ROWS, ROWS + 1, 2500])
def test_the_sample_is_bounded_and_spread_over_all_images(program, count):
    module, node = program
    seen = observe(module, {node: False}, stream(count), count)[node]
    assert len(seen.rows) <= ROWS
    assert len(seen.rows) >= min(ROWS // 4, count)
    assert seen.rows.shape[1] == 3
    sources = set(seen.rows[:, 0].tolist())
    assert min(sources) <= 0.01 * count
    assert max(sources) >= 0.99 * (count - 1) - 1
    assert (seen.low, seen.high) == (0, count - 1)  # over all images, sampled or not
    assert seen.peak.tolist() == [count - 1] * 3


def test_the_peak_is_per_channel_and_includes_negative_values(program):
    module, node = program
    image = np.zeros(SPEC.shape, np.float32)
    image[0, 0, 1, 1], image[0, 2, 0, 0] = -5, 3
    seen = observe(module, {node: False}, [image], 1)[node]
    assert seen.peak.tolist() == [5, 0, 3]
    assert (seen.low, seen.high) == (-5, 3)


def test_the_same_images_give_the_same_sample(program):
    module, node = program
    first, second = (observe(module, {node: False}, stream(50), 50)[node] for _ in range(2))
    assert torch.equal(first.rows, second.rows)


def test_a_feature_map_is_sampled_by_its_channels():
    model = nn.Conv2d(3, 2, 1)
    module = trace(model.eval(), SPEC).program.module()
    node = next(n for n in module.graph.nodes if n.op == "placeholder")
    seen = observe(module, {node: True}, [np.arange(12, dtype=np.float32).reshape(SPEC.shape)], 1)[node]
    assert seen.peak.tolist() == [3, 7, 11]
    assert {tuple(r) for r in seen.rows.tolist()} <= {(i, i + 4, i + 8) for i in range(4)}


def test_channels_of_what_a_linear_reads_are_last_even_in_four_dimensions():
    class ChannelsLast(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 5)

        def forward(self, images):
            return self.linear(images.permute(0, 2, 3, 1))

    module = trace(ChannelsLast().eval(), InputSpec(1, 2, 4)).program.module()
    node = next(n for n in module.graph.nodes if n.target is torch.ops.aten.linear.default).args[0]
    seen = observe(module, {node: False}, [np.arange(24, dtype=np.float32).reshape(1, 3, 2, 4)], 1)[node]
    assert seen.peak.tolist() == [7, 15, 23]


def test_no_images_is_an_error(program):
    module, node = program
    with pytest.raises(QuantError, match="calibration saw no image"):
        observe(module, {node: False}, [], 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_an_error_even_in_one_image(program, value):
    module, node = program
    good, bad = (np.zeros(SPEC.shape, np.float32) for _ in range(2))
    bad[0, 1, 1, 0] = value
    with pytest.raises(QuantError, match="becomes infinite or NaN on the calibration images"):
        observe(module, {node: False}, [good, bad, good], 3)


def test_progress_counts_the_batches(program):
    module, node = program
    told = []
    observe(module, {node: False}, stream(4), 4, told.append)
    assert told == [1, 2, 3, 4]

"""Reductions in front of the channels keep their axis; the engine that needs it then agrees with its program."""

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.export.rewrite import rewrite
from edgevit.export.trace import trace
from edgevit.quant.apply import quantize
from edgevit.runtimes import runtime
from edgevit.stages import InputSpec

SPEC = InputSpec(1, 16, 16)


class Pools(nn.Module):
    """A Linear's tokens `[1, 64, 32]` through `pool`, then a head."""

    def __init__(self, pool):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.head, self.pool = nn.Linear(12, 32), nn.Linear(32, 10), pool

    def forward(self, images):
        return self.head(self.pool(self.linear(images.reshape(1, 12, 64).transpose(1, 2))))


POOLS = {
    "mean of tokens": (lambda x: x.mean(1), 1),
    "mean of tokens, counted from behind": (lambda x: x.mean(-2), 1),
    "sum of tokens": (lambda x: x.sum(1), 1),
    "largest token": (lambda x: x.amax(1), 1),
    "mean of a map": (lambda x: x.reshape(1, 8, 8, 32).mean((1, 2)), 1),
    "kept already": (lambda x: x.mean(1, keepdim=True), 0),
    "the last axis": (lambda x: x.transpose(1, 2).mean(2), 0),
}


@pytest.mark.parametrize("name", POOLS)
def test_only_reductions_that_drop_an_axis_in_front_of_the_channels_change(name):
    pool, count = POOLS[name]
    module = trace(Pools(pool).eval(), SPEC).program.module()
    assert len(rewrite(module, SPEC, ["keep_reduced_axes"])) == count


def test_the_openvino_engine_of_a_pooled_model_agrees_with_its_program(tmp_path):
    pytest.importorskip("openvino")
    target, generator = runtime("openvino"), np.random.default_rng(0)
    images = [generator.standard_normal(SPEC.shape).astype(np.float32) for _ in range(6)]
    for image in images:
        image[:, 0] *= 20  # loud channels, so that the head's input is rescaled: a factor per channel behind the mean
    graph = trace(Pools(lambda x: x.mean(1)).eval(), SPEC)
    # 7-bit weights: what every x86 CPU sums exactly
    quantized = quantize(graph, target.policy.quantizes("int8+w7"), target.policy.rewrites, images[:4], 4)
    session = target.open(target.build(quantized, tmp_path, "int8+w7"), 1)
    with torch.no_grad():
        want = np.stack([quantized.program.module()(torch.from_numpy(i)).numpy() for i in images])
    have = np.stack([session.run(i) for i in images])
    assert np.abs(have - want).max() < 1e-2 * np.abs(want).max()  # a rounding may fall to the other side

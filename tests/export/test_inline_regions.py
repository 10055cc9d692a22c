"""A region without autocast is its body: no nested program is left, and the outputs stay."""

import pytest
import torch
from torch import nn

from edgevit.export.trace import trace
from edgevit.stages import InputSpec

SPEC = InputSpec(1, 8, 8)
REGION = torch.ops.higher_order.wrap_with_autocast


class Regions(nn.Module):
    """`run(self, images)` with a Linear at hand."""

    def __init__(self, run):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.run = nn.Linear(8, 4), run

    def forward(self, images):
        return self.run(self, images)


def inside(self, images):
    with torch.autocast("cpu", enabled=False):
        x = self.linear(images * 2)
    return x.relu()


def last(self, images):
    x = self.linear(images)
    with torch.autocast("cpu", enabled=False):
        return x.float() * 2


def two_results(self, images):
    with torch.autocast("cpu", enabled=False):
        first, second = self.linear(images).split(2, dim=-1)
    return first * second.relu()


def twice(self, images):
    return inside(self, images) + last(self, images)


@pytest.mark.parametrize("run", [inside, last, two_results, twice])
def test_a_region_without_autocast_becomes_its_body(run):
    model = Regions(run).eval()
    program = trace(model, SPEC).program
    assert not any(node.target is REGION for node in program.graph.nodes)
    images = torch.rand(SPEC.shape, generator=torch.Generator().manual_seed(0))
    again = trace(program.module(), SPEC).program.module()
    with torch.no_grad():
        assert torch.equal(program.module()(images), model(images))
        assert torch.equal(again(images), model(images))


def test_a_region_that_casts_stays():
    def casts(self, images):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.linear(images).float()

    program = trace(Regions(casts).eval(), SPEC).program
    assert sum(node.target is REGION for node in program.graph.nodes) == 1

"""The float and the quantized stream of one program, where it picks tokens."""

import pytest
import torch

from edgevit.export.rewrite import attribute
from edgevit.quant.layers import LINEAR
from edgevit.quant.streams import distance, walk

NOISE = 0.1
BEHIND = 2  # after the qkv and the output projection of the block that reduces


def disturbed(graph, images):
    """How far the inputs of Linears lie apart, in order, where each Linear's output is disturbed by NOISE."""
    module, apart = graph.program.module(), []
    generator = torch.Generator().manual_seed(0)

    def visit(node, x_float, x, want):
        apart.append(distance(x, x_float))
        found = [LINEAR(value, *(attribute(module, parameter) for parameter in node.args[1:])) for value in x]
        return [v + NOISE * v.std() * torch.randn(v.shape, generator=generator) for v in found]

    wanted = set(module.graph.find_nodes(op="call_function", target=LINEAR))
    walk(module, [torch.from_numpy(image) for image in images], visit, wanted)
    return apart


@pytest.mark.parametrize("schedule", ["tome:r=3@1", "tome:r=6@1", "pitome:ratio=0.7@1", "evit:keep=0.5@1"])
def test_both_streams_keep_the_tokens_of_the_float_one(traced, images, schedule):
    dense, reduced = disturbed(traced(), images), disturbed(traced(schedule), images)
    assert len(dense) == len(reduced)
    # The first layer behind the step. What went through is the disturbance alone; rows of other tokens are 50 times as
    # far apart and more, and other tokens are picked in each of these.
    assert 0 < reduced[BEHIND] < 2 * dense[BEHIND]

"""Which quotients of two activations are sums divided by one another, and what they are computed from."""

from torch import nn

from edgevit.export.trace import trace
from edgevit.quant.flow import operator
from edgevit.quant.quotients import quotients_of_sums
from edgevit.stages import InputSpec


class Divides(nn.Module):
    """One function of a convolution's output."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 8, 8), function

    def forward(self, images):
        return self.function(self.conv(images).flatten(2))


def found(function):
    module = trace(Divides(function).eval(), InputSpec(1, 32, 32)).program.module()
    names = quotients_of_sums(module)
    return {operator(n) for n in module.graph.nodes if n.name in names}


def test_a_quotient_is_followed_back_to_its_layer():
    sums = found(lambda x: (x.relu() @ x.transpose(1, 2)) / (x.relu().sum(-1, keepdim=True) + 1))
    assert sums == {"div", "add", "sum", "relu", "matmul"}


def test_without_a_sum_there_is_nothing_to_overflow():
    assert found(lambda x: x / x.abs().amax(-1, keepdim=True)) == set()
    assert found(lambda x: (x @ x.transpose(1, 2)) / 3) == set()

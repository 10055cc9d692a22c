"""Branches of training become one layer by the modules' own methods, on a copy, and proved; what cannot stays."""

import pytest
import torch
from torch import nn

from edgevit.errors import GraphError
from edgevit.reparameterize import reparameterize
from edgevit.stages import InputSpec

SPEC = InputSpec(1, 16, 16)


class Branches(nn.Module):
    """conv3x3(x) + conv1x1(x), as RepVGG has them."""

    def __init__(self, channels=3):
        super().__init__()
        self.wide, self.point = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.fused = None

    def forward(self, x):
        return self.fused(x) if self.fused else self.wide(x) + self.point(x)

    def merged(self):
        conv = nn.Conv2d(self.wide.in_channels, self.wide.out_channels, 3, padding=1)
        conv.weight.copy_(self.wide.weight + nn.functional.pad(self.point.weight, [1, 1, 1, 1]))
        conv.bias.copy_(self.wide.bias + self.point.bias)
        return conv


class Fuses(Branches):
    def fuse(self):
        return self.merged()


class Reparameterizes(Branches):
    def reparameterize(self):
        self.fused = self.merged()
        del self.wide, self.point


class Deploys(Reparameterizes):
    reparameterize = None

    def switch_to_deploy(self):
        Reparameterizes.reparameterize(self)


class Forgets(Branches):
    """A method with a bug: the bias of a branch is lost."""

    def fuse(self):
        conv = self.merged()
        conv.bias.copy_(self.wide.bias)
        return conv


class Fails(Branches):
    def reparameterize(self):
        del self.wide
        raise AttributeError("there is no branch")


class Joins(Branches):
    """`fuse` of two feature maps, which means something else."""

    def fuse(self, first, second):
        return first + second


class Declines(Branches):
    def fuse(self):
        return self


def layers(model):
    return sum(isinstance(m, nn.Conv2d) for m in model.modules())


@pytest.mark.parametrize("kind", [Fuses, Reparameterizes, Deploys])
def test_branches_become_one_layer_and_the_model_is_not_edited(kind):
    model = nn.Sequential(kind(), nn.ReLU(), nn.Sequential(kind())).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused, count = reparameterize(model, SPEC)
    assert (count, layers(fused), layers(model)) == (2, 2, 4)
    assert not any(m.training for m in fused.modules())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert reparameterize(fused, SPEC) == (fused, 0)  # what is done already stays


@pytest.mark.parametrize("kind", [Branches, Fails, Joins, Declines])
def test_a_model_without_a_method_that_works_is_returned_itself(kind):
    model = nn.Sequential(kind()).eval()
    assert reparameterize(model, SPEC) == (model, 0)


def test_a_module_whose_method_fails_stays_whole_beside_one_that_fuses():
    fused, count = reparameterize(nn.Sequential(Fails(), Fuses()).eval(), SPEC)
    assert (count, layers(fused)) == (1, 3)


def test_a_shared_module_stays_shared():
    block = Fuses()
    fused, count = reparameterize(nn.Sequential(block, nn.ReLU(), block).eval(), SPEC)
    assert count == 1
    assert fused[0] is fused[2]


def test_a_method_that_changes_the_outputs_is_refused():
    with pytest.raises(GraphError, match=r"1 modules .* differ by \d\.\de-\d\d .*limit 1e-05.*exported program"):
        reparameterize(nn.Sequential(Forgets()).eval(), SPEC)


def test_a_model_that_does_not_run_on_the_input_is_refused_in_one_line():
    with pytest.raises(GraphError, match=r"Sequential does not take images \[1, 3, 16, 16\]: .*channels"):
        reparameterize(nn.Sequential(Fuses(4)).eval(), SPEC)


@pytest.mark.parametrize(("name", "norms"), [("fastvit", 14), ("repvit", 0), ("shvit", 0)])
def test_the_branches_of_a_hybrid_are_fused(name, norms):
    from tests.quant.hybrids import HYBRIDS, build

    size = HYBRIDS[name].size
    fused, count = reparameterize(build(name), InputSpec(1, size, size))
    assert count > 10
    assert sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in fused.modules()) == norms

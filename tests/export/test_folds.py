"""Batch norm and layer scale move into the layer in front of them; what else they may stand behind stays."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgevit.export.rewrite import PASSES, attribute, rewrite
from edgevit.export.trace import trace
from edgevit.stages import InputSpec

ATEN = torch.ops.aten
SPEC = InputSpec(2, 16, 16)
BOTH = ["fold_batch_norm", "fold_layer_scale"]


def disturbed(model):
    """Statistics, gains and offsets of which none is 0 or 1, so that a wrong fold shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.uniform_(0.3, 1.7, generator=generator)
                if name.endswith(("bias", "running_mean")):
                    tensor.sub_(1)
    return model.eval()


def folded(model, *names):
    """Passes that matched, and the program behind them; the runner compares the outputs."""
    module = trace(disturbed(model), SPEC).program.module()
    return rewrite(module, SPEC, names or BOTH), module


def uses(module, target):
    return sum(node.target is target for node in module.graph.nodes)


class Model(nn.Module):
    """`parts` become attributes, `run(self, images)` is the forward."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images):
        return self.run(self, images)


def tokens(images):
    """`[2, 3, 16, 16]` -> `[2, 16, 48]`."""
    return images.reshape(2, 48, 16).transpose(1, 2)


def vector(*shape):
    return nn.Parameter(torch.empty(shape).uniform_(0.3, 1.7, generator=torch.Generator().manual_seed(1)))


CONVS = {
    "plain": {"kernel_size": 3},
    "no bias": {"kernel_size": 3, "bias": False},
    "grouped": {"kernel_size": 3, "groups": 3},
    "padding by name": {"kernel_size": 3, "padding": "same"},
    "strided": {"kernel_size": 3, "stride": 2, "dilation": 2},
}


@pytest.mark.parametrize("name", CONVS)
def test_batch_norm_moves_into_a_convolution(name):
    done, module = folded(nn.Sequential(nn.Conv2d(3, 6, **CONVS[name]), nn.BatchNorm2d(6), nn.ReLU()))
    assert done == ("fold_batch_norm",)
    assert uses(module, ATEN.batch_norm.default) == 0


def test_batch_norm_without_gain_and_offset_moves_too():
    done, _ = folded(nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6, affine=False)))
    assert done == ("fold_batch_norm",)


def test_batch_norm_of_flattened_tokens_moves_into_their_linear():
    def levit(self, images):
        x = self.linear(tokens(images))
        return self.bn(x.flatten(0, 1)).reshape_as(x)

    done, module = folded(Model(levit, linear=nn.Linear(48, 6, bias=False), bn=nn.BatchNorm1d(6)))
    assert done == ("fold_batch_norm",)
    linear = next(n for n in module.graph.nodes if n.target is ATEN.linear.default)
    assert attribute(module, linear.args[2]).shape == (6,)


def test_batch_norm_of_a_map_made_from_tokens_moves_into_their_linear():
    model = Model(
        lambda self, x: self.bn(self.linear(tokens(x)).permute(0, 2, 1).reshape(2, 6, 4, 4)),
        linear=nn.Linear(48, 6),
        bn=nn.BatchNorm2d(6),
    )
    assert folded(model)[0] == ("fold_batch_norm",)


def conv_and_norm(run):
    return Model(run, conv=nn.Conv2d(3, 6, 3), bn=nn.BatchNorm2d(6))


def joined(self, images):
    """The layer's output is read beside the norm."""
    x = self.conv(images)
    return self.bn(x) + x


LEFT_NORMS = {
    "its layer has another reader": conv_and_norm(joined),
    "behind an activation": conv_and_norm(lambda self, x: self.bn(functional.relu(self.conv(x)))),
    "in front of the layer": Model(
        lambda self, x: self.conv(self.bn(x)), conv=nn.Conv2d(3, 6, 3), bn=nn.BatchNorm2d(3)
    ),
    "along another axis": conv_and_norm(lambda self, x: self.bn(self.conv(x).transpose(1, 2)[:, :6])),
    "tokens are its channels": Model(
        lambda self, x: self.bn(self.linear(tokens(x))), linear=nn.Linear(48, 16), bn=nn.BatchNorm1d(16)
    ),
    "weight is computed": Model(
        lambda self, x: self.bn(functional.linear(x.flatten(1), x.flatten(1))), bn=nn.BatchNorm1d(2)
    ),
    "channels are mixed by the reshape": Model(
        lambda self, x: self.bn(self.conv(x).reshape(2, 12, 7, 14)), conv=nn.Conv2d(3, 6, 3), bn=nn.BatchNorm2d(12)
    ),
}


@pytest.mark.parametrize("name", LEFT_NORMS)
def test_a_batch_norm_that_is_not_right_behind_its_layer_stays(name):
    done, module = folded(LEFT_NORMS[name])
    assert done == ()
    assert uses(module, ATEN.batch_norm.default) == 1


def conv_and_gain(run, *shape, **parts):
    return Model(run, conv=nn.Conv2d(3, 6, 3), gain=vector(*shape), **parts)


def linear_and_gain(run, *shape, **parts):
    return Model(run, linear=nn.Linear(48, 6), gain=vector(*shape), **parts)


SCALES = {
    "linear": linear_and_gain(lambda self, x: self.linear(tokens(x)) * self.gain, 6),
    "gain first": linear_and_gain(lambda self, x: self.gain * self.linear(tokens(x)), 6),
    "in place": linear_and_gain(lambda self, x: self.linear(tokens(x)).mul_(self.gain), 6),
    "dropout between": linear_and_gain(
        lambda self, x: tokens(x)[..., :6] + self.gain * self.drop(self.linear(tokens(x))), 6, drop=nn.Dropout(0.5)
    ),
    "conv": conv_and_gain(lambda self, x: self.conv(x) * self.gain, 6, 1, 1),
    "conv, four dimensions": conv_and_gain(lambda self, x: self.conv(x) * self.gain, 1, 6, 1, 1),
    "conv, gain reshaped": conv_and_gain(lambda self, x: self.conv(x) * self.gain.view(1, -1, 1, 1), 6),
    "conv, gain given axes": conv_and_gain(lambda self, x: self.conv(x) * self.gain[:, None, None], 6),
    "tokens to a map between": linear_and_gain(
        lambda self, x: self.linear(tokens(x)).transpose(1, 2).reshape(2, 6, 4, 4) * self.gain, 6, 1, 1
    ),
}


@pytest.mark.parametrize("name", SCALES)
def test_layer_scale_moves_into_its_layer(name):
    done, module = folded(SCALES[name])
    assert done == ("fold_layer_scale",)
    assert uses(module, ATEN.mul.Tensor) + uses(module, ATEN.mul_.Tensor) == 0


def test_layer_scale_behind_a_batch_norm_moves_with_it():
    model = conv_and_gain(lambda self, x: self.gain * self.bn(self.conv(x)), 6, 1, 1, bn=nn.BatchNorm2d(6))
    assert folded(model)[0] == ("fold_batch_norm", "fold_layer_scale")
    assert folded(model, "fold_layer_scale")[0] == ()


def read_twice(self, images):
    x = self.linear(tokens(images))
    return x * self.gain + x


LEFT_SCALES = {
    "its layer has another reader": linear_and_gain(read_twice, 6),
    "one number": linear_and_gain(lambda self, x: self.linear(tokens(x)) * self.gain, 1),
    "one number a token": linear_and_gain(lambda self, x: self.linear(tokens(x)) * self.gain, 16, 1),
    "one number a channel and token": linear_and_gain(lambda self, x: self.linear(tokens(x)) * self.gain, 16, 6),
    "one number a column of the map": conv_and_gain(lambda self, x: self.conv(x) * self.gain, 14),
    "an activation between": linear_and_gain(lambda self, x: functional.gelu(self.linear(tokens(x))) * self.gain, 6),
    "computed from the image": linear_and_gain(lambda self, x: self.linear(tokens(x)) * x[:, :1, 0, :6], 6),
    "it widens the product": Model(
        lambda self, x: self.conv(x) * self.gain, conv=nn.Conv2d(3, 1, 3), gain=vector(6, 1, 1)
    ),
}


@pytest.mark.parametrize("name", LEFT_SCALES)
def test_a_product_that_is_no_layer_scale_stays(name):
    assert folded(LEFT_SCALES[name])[0] == ()


def test_the_folds_stand_in_front_of_the_passes_that_look_for_bare_layers():
    assert list(PASSES)[:2] == BOTH


HYBRIDS = {  # of what random timm model: norms and products that are folded, norms that are left
    "levit": (50, 0, 2),  # the two norms in front of the heads' Linears
    "edgenext": (0, 8, 0),
    "swiftformer": (21, 24, 5),
}


@pytest.mark.parametrize(
    "name", ["edgenext", *(pytest.param(name, marks=pytest.mark.slow) for name in ("levit", "swiftformer"))]
)
def test_a_hybrid_is_folded(name, hybrid):
    norms, scales, left = HYBRIDS[name]
    model, spec = hybrid(name)
    module = trace(model, spec).program.module()
    before = uses(module, ATEN.batch_norm.default), uses(module, ATEN.mul.Tensor)
    assert rewrite(module, spec, BOTH) == tuple(n for n, count in zip(BOTH, (norms, scales), strict=True) if count)
    assert uses(module, ATEN.batch_norm.default) == before[0] - norms == left
    assert uses(module, ATEN.mul.Tensor) == before[1] - scales


def test_shapes_behind_a_folded_layer_stay_numbers(hybrid):
    model, spec = hybrid("edgenext")
    module = trace(model, spec).program.module()
    rewrite(module, spec, [*BOTH, "patches_as_linear", "fold_norm_affine"])
    values = [node.meta["val"] for node in module.graph.nodes if hasattr(node.meta.get("val"), "shape")]
    assert all(type(size) is int for value in values for size in value.shape)

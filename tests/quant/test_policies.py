"""What each backend's policy does to a small hybrid, read off the produced program."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.errors import QuantError
from edgevit.export.trace import trace
from edgevit.quant.apply import quantize
from edgevit.quant.layers import layer_name
from edgevit.quant.policies import POLICIES
from edgevit.quant.ranges import quantize_weight
from edgevit.quant.regions import CONV, RESIDUAL, regions
from edgevit.quant.scheme import QuantScheme
from edgevit.stages import InputSpec

ATEN, QDQ = torch.ops.aten, torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = QDQ.quantize_per_tensor.default, QDQ.dequantize_per_tensor.default
CHANNELS = QDQ.dequantize_per_channel.default
LAYERS = (ATEN.linear.default, ATEN.conv2d.default)
SPEC = InputSpec(1, 32, 32)
QUICK = {"ranges": ("minmax",), "equalize": False, "compensate": False, "correct_bias": False}
"""No step that a rule depends on: placement and types are the same without the searches."""


class Gate(nn.Module):
    """Squeeze-excite."""

    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, 16, 1), nn.Conv2d(16, width, 1)

    def forward(self, x):
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Conv(nn.Module):
    """Two 3x3 convolutions with a gate between and the input around them, written in place as torchvision does."""

    def __init__(self, width, shortcut=None):
        super().__init__()
        self.first, self.gate = nn.Conv2d(width, width, 3, padding=1), Gate(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x):
        out = self.second(self.gate(self.first(x).relu()))
        out += self.shortcut(x)
        return out.relu()


class Attention(nn.Module):
    """A transformer block with one head on a map's positions, in front of it a Linear into the stream."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.proj(torch.softmax(self.q(y) @ self.k(y).transpose(1, 2) * 0.2, -1) @ self.v(y))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Hybrid(nn.Module):
    """Stem, two convolutional blocks (the second with a 1x1 shortcut), narrow layers, two attention blocks, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.conv1, self.conv2 = Conv(16), Conv(16, nn.Conv2d(16, 16, 1))
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.narrow, self.middle, self.wide = (
            nn.Conv2d(16, 12, 3, padding=1),
            nn.Conv2d(12, 12, 1),
            nn.Conv2d(12, 16, 1),
        )
        self.attention1, self.attention2 = Attention(16), Attention(16)
        self.head = nn.Linear(16, 7)

    def forward(self, images):
        x = self.conv2(self.conv1(self.stem(images)))
        x = self.wide(self.middle(self.narrow(self.depthwise(x)))).flatten(2).transpose(1, 2)
        return self.head(self.attention2(self.attention1(x)).mean(1))


@pytest.fixture(scope="module")
def graph():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trace(Hybrid().eval(), SPEC)


@pytest.fixture(scope="module")
def images():
    return [np.random.default_rng(i).standard_normal(SPEC.shape).astype(np.float32) for i in range(3)]


@pytest.fixture(scope="module")
def programs(graph, images):
    """Factory: the quantized program of a policy."""
    done = {}

    def get(name):
        if name not in done:
            done[name] = quantize(graph, replace(POLICIES[name], **QUICK), (), images, len(images))
        return done[name]

    return get


def nodes(program, *targets):
    return [n for n in program.program.graph.nodes if n.target in targets]


def constant(program, node):
    """The tensor behind a placeholder."""
    signature = program.program.graph_signature
    named = {
        **signature.inputs_to_buffers,
        **signature.inputs_to_parameters,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return {**program.program.state_dict, **program.program.constants}[named[node.name]]


def quantized_adds(program):
    """Label of each add with a quantized input → which of its inputs are."""
    module = program.program.module()
    labels = regions(module)
    found = []
    for node in module.graph.nodes:
        if node.target in (ATEN.add.Tensor, ATEN.add_.Tensor):
            which = tuple(getattr(a, "target", None) is DEQUANTIZE for a in node.args[:2])
            if any(which):
                found.append((labels[node], which))
    return found


@pytest.mark.parametrize("name", POLICIES)
def test_weights_are_symmetric_int8_with_a_scale_for_each_output_channel(programs, name):
    program = programs(name)
    weights = [n for n in nodes(program, CHANNELS) if all(u.args[1] is n for u in n.users)]
    assert weights
    for node in weights:
        values, scale, zero = (constant(program, a) for a in node.args[:3])
        assert values.dtype == torch.int8
        assert scale.shape == zero.shape == (len(values),)
        assert zero.eq(0).all()
        most = 2 ** (POLICIES[name].weight_bits - 1) - 1
        assert values.abs().max() == most  # the largest of a row is rounded to the end


@pytest.mark.parametrize("name", ["onnx", "tensorrt", "coreml", "coreai"])
def test_zero_points_are_0_and_biases_float(programs, name):
    program = programs(name)
    assert nodes(program, QUANTIZE)
    assert all(n.args[2:] == (0, -128, 127, torch.int8) for n in nodes(program, QUANTIZE, DEQUANTIZE))
    assert not [n for n in nodes(program, CHANNELS) if n.args[-1] is not torch.int8]
    assert all(layer.args[2].target != CHANNELS for layer in nodes(program, *LAYERS))


@pytest.mark.parametrize("name", ["ort-s8", "executorch"])
def test_signed_activations_have_zero_points(programs, name):
    points = [n.args[2] for n in nodes(programs(name), QUANTIZE)]
    assert {n.args[3:] for n in nodes(programs(name), QUANTIZE)} == {(-128, 127, torch.int8)}
    assert any(points)
    assert all(-128 <= point <= 127 for point in points)


@pytest.mark.parametrize("name", ["ort", "ort-w7", "openvino", "openvino-w7"])
def test_unsigned_activations(programs, name):
    assert {n.args[3:] for n in nodes(programs(name), QUANTIZE)} == {(0, 255, torch.uint8)}


@pytest.mark.parametrize("name", POLICIES)
def test_biases_are_int32_for_onnx_runtime_alone(programs, name):
    biases = [layer.args[2].target is CHANNELS for layer in nodes(programs(name), ATEN.linear.default)]
    assert biases
    assert set(biases) == {name.startswith("ort")}


def test_two_products_of_7_bit_weights_fit_in_16_bits():
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    largest = int(quantize_weight(weight, POLICIES["ort-w7"].weight_bits)[0].abs().max())
    assert 2 * 255 * largest < 2**15 <= 2 * 255 * int(quantize_weight(weight)[0].abs().max())


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_is_quantized_on_the_residual_stream_of_a_transformer(programs, name):
    found = quantized_adds(programs(name))
    if name != "executorch":  # there a Linear's own output is quantized, its kernel has no other; the sum is float
        assert not [which for label, which in found if label != CONV]
    assert not [which for label, which in found if label == RESIDUAL and all(which)]
    reasons = {r.layer: r.reason for r in programs(name).kept_float}
    assert sum(layer.startswith("attention") and layer.endswith("(add)") for layer in reasons) >= 2


def test_tensorrt_quantizes_the_skip_input_of_convolutional_adds(programs):
    found = quantized_adds(programs("tensorrt"))
    assert found == [(CONV, (False, True))] * 2  # written `branch + skip`, the second with a shortcut's convolution
    assert quantized_adds(programs("onnx")) == []


def test_the_skip_and_the_convolution_that_read_one_tensor_share_its_scale(programs):
    program = programs("tensorrt")
    adds = [n for n in nodes(program, ATEN.add.Tensor) if getattr(n.args[1], "target", None) is DEQUANTIZE]
    quantizers = [n.args[1].args[0] for n in adds]
    shared = [[n.args[1:3] for n in nodes(program, QUANTIZE) if n.args[0] is q.args[0]] for q in quantizers]
    assert [len(scales) for scales in shared] == [2, 1]  # the shortcut's output is read by the add alone
    assert len(set(shared[0])) == 1


@pytest.mark.parametrize("name", ["coreml", "coreai"])
def test_apple_quantizes_both_inputs_of_convolutional_adds(programs, name):
    assert quantized_adds(programs(name)) == [(CONV, (True, True))] * 2


def test_tensorrt_leaves_small_layers_and_gates_float_and_says_so(programs):
    program = programs("tensorrt")
    reasons = {r.layer: r.reason for r in program.kept_float}
    small = {"middle", "head"}  # 12 channels on both sides, one row
    assert {layer for layer in reasons if "too small for 8 bits" in reasons[layer]} == small
    assert reasons["head"] == "too small for 8 bits on this target: weight [7, 16], rows 1"
    gates = {f"conv{i}.gate.fc{j}" for i in (1, 2) for j in (1, 2)}
    assert {layer for layer in reasons if "region gate" in reasons[layer]} == gates
    done = {layer for entry in program.log for layer in entry["layers"]}
    assert {"stem", "depthwise", "narrow", "wide", "attention1.fc1"} <= done  # stem: 3 channels, but the image's
    assert not done & (small | gates)


def test_xnnpack_finds_a_quantizer_behind_every_integer_layer(programs):
    """Its partitioner's rule: one reader, behind a ReLU or not, which quantizes."""
    layers = nodes(programs("executorch"), *LAYERS)
    assert len(layers) == 27
    for layer in layers[:-1]:  # the program's output is the classifier's
        reader = layer
        for _ in range(2):
            (reader,) = reader.users
            if reader.target is not ATEN.relu.default:
                break
        assert reader.target is QUANTIZE, layer_name(layer)


@pytest.mark.parametrize("name", POLICIES)
def test_the_program_is_near_the_float_one(programs, graph, images, name):
    real, fake = graph.program.module(), programs(name).program.module()
    with torch.no_grad():
        pairs = [(real(torch.from_numpy(x)), fake(torch.from_numpy(x))) for x in images]
    error = sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a, _ in pairs)
    # min-max 8 bits, some 25 layers one after another, each with a noise of about 1/100 of its output
    assert 0 < error**0.5 < 0.15


def test_a_scheme_without_sense_is_refused():
    with pytest.raises(QuantError, match="affine=True is for int8 and int16 activations, not uint8; drop it"):
        QuantScheme(affine=True)
    with pytest.raises(QuantError, match="residuals='skip' quantizes activations, and there are none; drop it"):
        QuantScheme(activations=None, residuals="skip")


def test_policies_are_frozen():
    with pytest.raises(FrozenInstanceError):
        POLICIES["onnx"].weight_bits = 4
    with pytest.raises(TypeError):
        POLICIES["other"] = QuantScheme()

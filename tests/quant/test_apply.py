"""The quantized program: Q/DQ where it belongs and nowhere else, every other operator listed with its reason."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.errors import QuantError
from edgevit.export.gate import check_program
from edgevit.export.trace import trace
from edgevit.quant.apply import quantize
from edgevit.quant.scheme import QuantScheme
from edgevit.stages import InputSpec

ATEN, QDQ = torch.ops.aten, torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = QDQ.quantize_per_tensor.default, QDQ.dequantize_per_tensor.default
CHANNELS = QDQ.dequantize_per_channel.default
COMPUTE = (ATEN.linear.default, ATEN.conv2d.default)
CASES = [
    ("none", "ort"),
    pytest.param("tome:r=3", "openvino", marks=pytest.mark.slow),
    pytest.param("none", "none", marks=pytest.mark.slow),
    pytest.param("none", "openvino", marks=pytest.mark.slow),
    pytest.param("evit:keep=0.5@1,2", "ort", marks=pytest.mark.slow),
]
# What moves values about, as this test sees it; anything else that gives float values computes.
STILL = {
    "full", "ones", "split_with_sizes",
    "getitem", "reshape", "permute", "transpose", "select", "slice", "unbind", "clone", "cat", "expand", "unsqueeze",
    "squeeze", "flatten", "index_select", "gather", "to", "dropout", "arange", "ones_like", "_assert_tensor_metadata",
}  # fmt: skip


def nodes(graph, *targets):
    return [n for n in graph.program.graph.nodes if n.target in targets]


def operator_of(node):
    return str(getattr(node.target, "_opname", None) or node.target.__name__).rstrip("_")


@pytest.mark.parametrize(("schedule", "passes"), CASES)
def test_quantized_values_are_read_by_linears_and_convolutions_alone(quantized, schedule, passes):
    graph = quantized(schedule, passes)
    assert nodes(graph, QUANTIZE)
    for node in nodes(graph, QUANTIZE):
        assert [user.target for user in node.users] == [DEQUANTIZE]
    for node in nodes(graph, DEQUANTIZE):
        assert node.args[0].target is QUANTIZE
        assert node.users
        assert all(user.target in COMPUTE and user.args[0] is node for user in node.users)
        assert all(node not in user.args[1:] for user in node.users)
    for node in nodes(graph, CHANNELS):
        assert all(user.target in COMPUTE and user.args[1] is node for user in node.users)


@pytest.mark.parametrize(("schedule", "passes"), CASES)
def test_every_linear_and_convolution_has_both_inputs_quantized(quantized, schedule, passes):
    graph = quantized(schedule, passes)
    # patch embedding, 4 a block, head; split_qkv makes 6 a block
    assert len(nodes(graph, *COMPUTE)) == (14 if passes == "openvino" else 10)
    for node in nodes(graph, *COMPUTE):
        assert [source.target for source in node.args[:2]] == [DEQUANTIZE, CHANNELS], node.name


@pytest.mark.parametrize(("schedule", "passes"), CASES)
def test_every_other_operator_that_computes_is_listed(quantized, schedule, passes):
    graph = quantized(schedule, passes)
    listed = [re.fullmatch(r"(.+) \((\w+)\)", refusal.layer).group(2) for refusal in graph.kept_float]
    found = []
    for node in graph.program.graph.nodes:
        if node.op != "call_function" or "quantized_decomposed" in str(node.target) or node.target in COMPUTE:
            continue
        value = node.meta.get("val")
        computes = not hasattr(value, "dtype") or value.dtype.is_floating_point
        if computes and operator_of(node) not in STILL:
            found.append(operator_of(node))
    assert sorted(listed) == sorted(found)
    assert all(refusal.reason for refusal in graph.kept_float)


@pytest.mark.parametrize(("schedule", "passes"), CASES)
def test_layers_are_named_by_their_module_path(quantized, traced, schedule, passes):
    graph = quantized(schedule, passes)
    names = {n.name for n in graph.program.graph.nodes} | {n.name for n in traced(schedule).program.graph.nodes}
    layers = [name for entry in graph.log for name in entry["layers"]]
    assert {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.1.mlp.fc2", "head"} <= set(layers)
    kept = [refusal.layer.rsplit(" (", 1)[0] for refusal in graph.kept_float]
    assert "blocks.0.norm1" in kept
    assert "blocks.1.mlp.act" in kept
    attention = [r.layer for r in graph.kept_float if r.layer.endswith("(scaled_dot_product_attention)")]
    assert [layer.split(".")[:2] for layer in attention] in (
        [["blocks", "0"], ["blocks", "1"]],
        [["blocks", "0 (scaled_dot_product_attention)"], ["blocks", "1 (scaled_dot_product_attention)"]],
    )
    for name in {*layers, *kept}:
        assert name not in names - {"model", "norm", "head"}, name
        assert not name.startswith(("stem.model", "head.model", "model.")), name


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_integer_types_and_scales(quantized, activations):
    graph = quantized("none", "none", activations=activations, equalize=False)
    limits = (0, 255, torch.uint8) if activations == "uint8" else (-128, 127, torch.int8)
    for node in nodes(graph, QUANTIZE, DEQUANTIZE):
        _, scale, zero_point, *rest = node.args
        assert tuple(rest) == limits
        assert 0 < scale < float("inf")
        assert limits[0] <= zero_point <= limits[1]
        assert activations == "uint8" or zero_point == 0
    constants = {**graph.program.state_dict, **graph.program.constants}
    signature = graph.program.graph_signature
    names = {
        **signature.inputs_to_buffers,
        **signature.inputs_to_parameters,
        **signature.inputs_to_lifted_tensor_constants,
    }
    for node in nodes(graph, CHANNELS):
        values, scale, zero = (constants[names[a.name]] for a in node.args[:3])
        assert values.dtype == torch.int8
        assert values.min() >= -127
        assert scale.shape == (values.shape[0],)
        assert (scale > 0).all()
        assert zero.eq(0).all()
        assert node.args[3:] == (0, -127, 127, torch.int8)


def test_layers_of_wide_regions_have_8_bits_where_others_have_fewer(quantized):
    ends = {"wide_regions": ("stem", "head"), "weight_bits": 4, "activation_bits": 5, "equalize": False}
    graph = quantized("none", "none", **ends)
    constants = {**graph.program.state_dict, **graph.program.constants}
    signature = graph.program.graph_signature
    names = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    bits = []
    for node in nodes(graph, *COMPUTE):
        levels = node.args[0].args[4] - node.args[0].args[3]
        bits.append((levels, int(constants[names[node.args[1].args[0].name]].abs().max())))
    assert bits == [(255, 127), *[(31, 7)] * 8, (255, 127)]


@pytest.mark.parametrize(("schedule", "passes"), CASES)
def test_the_quantized_program_is_static_and_near_the_float_one(quantized, traced, images, schedule, passes):
    graph = quantized(schedule, passes)
    check_program(graph.program)
    float_module, module = traced(schedule).program.module(), graph.program.module()
    with torch.no_grad():
        pairs = [(float_module(torch.from_numpy(i)), module(torch.from_numpy(i))) for i in images]
    signal = sum(float(want.square().sum()) for want, _ in pairs)
    noise = sum(float((got - want).square().sum()) for want, got in pairs)
    # 8 bits give about 40 dB a layer; ten layers, and a merge may pick another of two near-equal tokens
    assert 10 * np.log10(signal / noise) > 15
    assert noise > 0


def test_the_float_graph_is_untouched(traced, quantized, images):
    graph = traced()
    code = graph.program.graph_module.code
    state = {name: value.clone() for name, value in graph.program.state_dict.items()}
    quantize(graph, QuantScheme(equalize=False), ("split_qkv", "fold_norm_affine"), images[:1], 1)
    assert graph.program.graph_module.code == code
    assert all(torch.equal(graph.program.state_dict[name], value) for name, value in state.items())


class OneLinear(nn.Module):
    """images `[1, 3, 4, 4]` → one Linear on rows of 3."""

    def __init__(self, dead=False, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 6, bias=bias)
        if dead:
            with torch.no_grad():
                self.linear.weight[2] = 0

    def forward(self, images):
        return self.linear(images.flatten(2).transpose(1, 2))


SMALL = InputSpec(1, 4, 4)


def mean_error(model, scheme, batches):
    """Mean output error per channel over the calibration images, and the root mean square."""
    graph = quantize(trace(model.eval(), SMALL), scheme, (), batches, len(batches))
    module = graph.program.module()
    with torch.no_grad():
        off = torch.cat([module(torch.from_numpy(b)) - model(torch.from_numpy(b)) for b in batches]).flatten(0, 1)
    return off.mean(0).abs().max().item(), off.square().mean().sqrt().item()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_bias_correction_removes_the_mean_error(bias):
    generator = np.random.default_rng(0)
    # one-sided with a tail: clipping pulls every output the same way
    batches = [np.square(generator.standard_normal(SMALL.shape)).astype(np.float32) for _ in range(64)]
    model = OneLinear(bias=bias)
    scheme = QuantScheme(activation_bits=4, equalize=False, compensate=False)  # 4 bits clip where it can be seen
    corrected, spread = mean_error(model, scheme, batches)
    plain, _ = mean_error(model, replace(scheme, correct_bias=False), batches)
    # the sample is 1024 draws of the 1024 rows, so a mean error of a few standard errors is left
    assert corrected < 5 * spread / 1024**0.5
    assert corrected < plain


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_a_dead_channel_and_a_constant_activation_stay_finite(activations):
    batches = [np.full(SMALL.shape, 0.5, np.float32), np.full(SMALL.shape, 0.5, np.float32)]
    graph = quantize(trace(OneLinear(dead=True).eval(), SMALL), QuantScheme(activations=activations), (), batches, 2)
    with torch.no_grad():
        got = graph.program.module()(torch.from_numpy(batches[0]))
        want = OneLinear(dead=True)(torch.from_numpy(batches[0]))
    assert torch.isfinite(got).all()
    assert (got - want).abs().max() < 0.02  # one step of the input and of each weight row


def test_equalization_is_folded_into_a_norm_or_becomes_one_multiplication(quantized):
    graph = quantized("none", "ort")
    chosen = {entry["layers"][0]: entry["equalization"] for entry in graph.log}
    assert chosen["blocks.0.mlp.fc1"] != "off"  # its input has one loud channel
    smoothed = [name for name, way in chosen.items() if way != "off"]
    folded = [name for name in smoothed if name.endswith(("attn.qkv", "mlp.fc1"))]
    assert len(nodes(graph, ATEN.mul.Tensor)) == len(smoothed) - len(folded)


def test_a_program_without_linear_or_convolution_is_refused():
    with pytest.raises(QuantError, match="no Linear or Conv with constant weights; there is nothing to quantize"):
        quantize(trace(nn.ReLU().eval(), SMALL), QuantScheme(), (), [np.zeros(SMALL.shape, np.float32)], 1)


def test_a_weight_that_is_computed_is_listed_and_stays_float():
    class Computed(OneLinear):
        def forward(self, images):
            rows = images.flatten(2).transpose(1, 2)
            return nn.functional.linear(self.linear(rows)[..., :3], rows[0, :2])

    batches = [np.random.default_rng(0).standard_normal(SMALL.shape).astype(np.float32)]
    graph = quantize(trace(Computed().eval(), SMALL), QuantScheme(), (), batches, 1)
    assert [r.reason for r in graph.kept_float if "computed" in r.reason] == ["its weight is computed, not a constant"]
    assert len(nodes(graph, CHANNELS)) == 1


def test_a_layer_that_reads_a_constant_is_listed_and_stays_float():
    class Positions(OneLinear):  # as EdgeNeXt's position encoding does
        def forward(self, images):
            rows = images.flatten(2).transpose(1, 2)
            return self.linear(rows) + self.linear(torch.linspace(-1, 1, 48).reshape(1, 16, 3))

    batches = [np.random.default_rng(0).standard_normal(SMALL.shape).astype(np.float32)]
    graph = quantize(trace(Positions().eval(), SMALL), QuantScheme(), (), batches, 1)
    assert [r.layer for r in graph.kept_float if "reads a constant" in r.reason] == ["linear"]
    assert len(nodes(graph, CHANNELS)) == 1


def test_an_operator_nobody_thought_of_is_still_listed():
    class Odd(OneLinear):
        def forward(self, images):
            return torch.cumsum(super().forward(images), dim=1)

    batches = [np.random.default_rng(0).standard_normal(SMALL.shape).astype(np.float32)]
    graph = quantize(trace(Odd().eval(), SMALL), QuantScheme(), (), batches, 1)
    assert [(r.layer, bool(r.reason)) for r in graph.kept_float if "cumsum" in r.layer] == [("model (cumsum)", True)]

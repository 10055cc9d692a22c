"""float16 programs: near float32, and float32 inside where rounding or overflow would change what is computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.distance import relative_error
from edgevit.export.to_half import to_half
from edgevit.export.to_onnx import to_onnx
from edgevit.export.trace import trace
from edgevit.quant.apply import quantize
from edgevit.quant.flow import operator
from edgevit.quant.policies import POLICIES
from edgevit.quant.scheme import OTHERS
from edgevit.stages import InputSpec
from tests.export.conftest import INPUTS
from tests.quant.hybrids import draw

onnxruntime = pytest.importorskip("onnxruntime")
NEAR = 4e-3  # a rounding is at most 2**-11 = 5e-4 of a value, and a logit is the sum of a few of them


def drawn(spec, count=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(spec.shape, generator=generator) for _ in range(count)]


def in_onnx(graph, path):
    """The written file as a function, run as it is."""
    to_onnx(graph, path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def check(graph, folder, near=NEAR, images=None):
    """Eager and in ONNX Runtime it gives float32, near what the program gave before."""
    before, half = graph.program.module(), to_half(graph)
    after, written = half.program.module(), in_onnx(half, folder / "half.onnx")
    with torch.no_grad():
        for image in images or drawn(graph.inputs):
            want = before(image)
            for got in (after(image), written(image)):
                assert got.dtype == torch.float32
                assert relative_error(got, want) < near
    return half


def types(graph, name):
    """Of the operators of a name, what they give."""
    nodes = [n for n in graph.program.graph.nodes if n.op == "call_function" and operator(n) == name]
    return {getattr(n.meta["val"], "dtype", None) for n in nodes}


def weights(graph, dtype):
    """How many numbers of a type the program reads from its weights."""
    inputs = [n for n in graph.program.graph.nodes if n.op == "placeholder" and n.users and n.name != "images"]
    return sum(n.meta["val"].numel() for n in inputs if n.meta["val"].dtype == dtype)


@pytest.mark.parametrize("schedule", [
    "tome:r=3@1",
    pytest.param("evit:keep=0.5@1", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_vit_is_near_float32(traced, schedule, tmp_path):
    half = check(traced(schedule), tmp_path)
    for name in ("linear", "layer_norm", "scaled_dot_product_attention", "gelu"):
        assert types(half, name) == {torch.float16}
    assert weights(half, torch.float32) < 0.01 * weights(half, torch.float16)
    assert half.passes[-1] == "to_half"


def test_what_picks_tokens_and_what_merges_them_stays_float32(traced):
    half = to_half(traced("tome:r=3@1"))
    for name in ("topk", "amax", "div", "linalg_vector_norm"):
        found = [n for n in half.program.graph.nodes if n.op == "call_function" and operator(n) == name]
        assert all(i.meta["val"].dtype is not torch.float16 for n in found for i in n.all_input_nodes), name
    assert torch.float32 in types(half, "matmul")  # the similarity of the keys


@pytest.mark.parametrize("name", [
    pytest.param("efficientvit_mit", marks=pytest.mark.slow),
    pytest.param("mobilevitv2", marks=pytest.mark.slow),
    pytest.param("levit", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_hybrid_is_near_float32(hybrid, name, tmp_path):
    module, spec = hybrid(name)
    images = list(draw(name, 2).split(1))  # its norms are settled on such; noise makes random weights amplify rounding
    half = check(trace(module, spec), tmp_path, near=1e-2, images=images)  # LeViT all in half, eager: 4.3e-3
    assert torch.float16 in types(half, "conv2d")
    assert types(half, "matmul") <= ({torch.float32} if name == "efficientvit_mit" else {torch.float16})


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["tensorrt", "fp8", "w4"])
def test_around_integers_all_is_float16(traced, scheme, tmp_path):
    images = [i.numpy() for i in drawn(INPUTS, 4)]
    graph = quantize(traced(), {**POLICIES, **OTHERS}[scheme], (), images, len(images))
    # a value that float16 moves over the middle between two integers moves by a whole step: E4M3 has 3 bits
    half = check(graph, tmp_path, near=0.08 if scheme == "fp8" else 0.04)
    assert half.kept_float == graph.kept_float
    kinds = {operator(n) for n in half.program.graph.nodes if operator(n).startswith("dequantize")}
    assert kinds
    assert all(types(half, kind) == {torch.float16} for kind in kinds)
    check_scales(tmp_path / "half.onnx")


def check_scales(path):
    """TensorRT's rule: a scale has the type of what it scales, and a dequantizer feeds a layer without a cast."""
    import onnx

    model = onnx.load(path)
    made = {o: n for n in model.graph.node for o in n.output}
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    quantizers = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantizers
    assert {kinds.get(n.input[1]) for n in quantizers} == {onnx.TensorProto.FLOAT16}
    casts = [n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in made]
    assert not [n for n in casts if made[n.input[0]].op_type == "DequantizeLinear"]


class Faint(nn.Module):
    """Its first Linear has a channel so faint that float16 does not hold the scale; its second has none."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3 * 32, 16), nn.Linear(16, 16)
        with torch.no_grad():
            self.first.weight[0] *= 1e-5

    def forward(self, images):
        return self.second(nn.functional.relu(self.first(images.flatten(1, 2).transpose(1, 2))))


def test_both_scales_of_a_layer_have_one_type(tmp_path):
    """TensorRT-RTX 1.7 builds no matrix product whose scales are float16 and float32."""
    torch.manual_seed(0)
    images = [i.numpy() for i in drawn(INPUTS, 4)]
    scheme = replace(POLICIES["tensorrt"], equalize=False)  # which would make it louder
    graph = quantize(trace(Faint().eval(), InputSpec(1, 32, 32)), scheme, (), images, len(images))
    half = check(graph, tmp_path, near=0.04)  # a value moves by a whole step, as above
    found = []
    for layer in (n for n in half.program.graph.nodes if operator(n) == "linear"):
        sources = [n.args[0] if operator(n) == "_to_copy" else n for n in layer.args[:2]]
        assert all(operator(n).startswith("dequantize") for n in sources)
        found.append({n.meta["val"].dtype for n in sources})
    assert found == [{torch.float32}, {torch.float16}]


class Awkward(nn.Module):
    """What float16 cannot hold: a weight, an offset, a tiny divisor, a sum over many; and what is written in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("large", torch.full((8, 1, 1), 1e5))

    def forward(self, images):
        x = self.norm(self.conv(images))
        y = nn.functional.relu_(x)  # x is read again below
        wide = (x * self.large).sum((2, 3)) / 64 / 1024  # too large in front of the divisions
        unit = nn.functional.normalize(wide * 1e-9, eps=1e-12)
        masked = torch.where(y > 0, y, -1e9).amax((2, 3))
        return torch.cat([wide, unit, masked, x.mean((2, 3))], dim=1)


def test_what_float16_cannot_hold_stays_float32(tmp_path):
    torch.manual_seed(0)
    module = Awkward()
    module.norm.running_var.fill_(0.3)
    half = check(trace(module.eval(), InputSpec(1, 32, 32)), tmp_path)
    assert types(half, "conv2d") == {torch.float16}
    assert half.passes == ("fold_batch_norm", "to_half")


def test_a_scale_too_small_for_float16_keeps_its_layer_in_float32(traced, tmp_path):
    images = [i.numpy() * 1e-4 for i in drawn(INPUTS, 4)]
    half = to_half(quantize(traced(), POLICIES["tensorrt"], (), images, len(images)))
    stem = next(n for n in half.program.graph.nodes if operator(n) == "quantize_per_tensor")
    assert stem.args[1] < 6.1e-5
    assert next(iter(stem.users)).meta["val"].dtype == torch.float32
    with torch.no_grad():
        assert np.isfinite(half.program.module()(torch.from_numpy(images[0])).numpy()).all()

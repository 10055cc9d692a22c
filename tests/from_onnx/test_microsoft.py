"""Files that ONNX Runtime's optimizers wrote: taken apart, and reduced like the module they came from."""

import onnx
import pytest
import torch
from torch import nn

from edgevit.from_onnx.clean import PASSES
from edgevit.from_onnx.read import read
from edgevit.names import named
from tests.from_onnx.single import graph, same
from tests.from_onnx.test_reduce import hugging_vit, same_reduction

slow = pytest.mark.slow
DOMAIN = "com.microsoft"


class Packed(torch.autograd.Function):
    """com.microsoft.Attention as a node; what it computes is nobody's business before the file is read."""

    @staticmethod
    def forward(ctx, x, weight, bias, heads):
        return x + weight.sum() + bias.sum()

    @staticmethod
    def symbolic(g, x, weight, bias, heads):
        return g.op(f"{DOMAIN}::Attention", x, weight, bias, num_heads_i=heads).setType(x.type())


class Apart(torch.autograd.Function):
    """com.microsoft.MultiHeadAttention as a node."""

    @staticmethod
    def forward(ctx, q, k, v, bias, heads):
        return q + k + v + bias.sum()

    @staticmethod
    def symbolic(g, q, k, v, bias, heads):
        return g.op(f"{DOMAIN}::MultiHeadAttention", q, k, v, bias, num_heads_i=heads).setType(q.type())


class Fused(nn.Module):
    """An attention of timm with one node between its Linears."""

    def __init__(self, attention, packed):
        super().__init__()
        self.attention, self.packed = attention, packed

    def forward(self, x, **_):
        a = self.attention
        if self.packed:
            out = Packed.apply(x, a.qkv.weight.T, a.qkv.bias, a.num_heads)
        else:
            q, k, v = (x @ weight.T for weight in a.qkv.weight.chunk(3))
            out = Apart.apply(q, k, v, a.qkv.bias, a.num_heads)
        return a.proj(out)


def kinds(path):
    return {node.op_type for node in onnx.load(path).graph.node if node.domain == DOMAIN}


@pytest.mark.parametrize("packed", [True, pytest.param(False, marks=slow)])
def test_fused_attention_is_reduced(exported, tiny_vit, packed):
    module, fused = tiny_vit(), tiny_vit()
    for block in fused.blocks:
        block.attn = Fused(block.attn, packed)
    path = exported(fused, 17, False)
    assert kinds(path) == {"Attention" if packed else "MultiHeadAttention"}
    same_reduction(path, module, "tome:r=4")


def by_transformers(path):
    """The optimizer for transformers that comes with ONNX Runtime."""
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(path), model_type="vit", num_heads=2, hidden_size=32, opt_level=0).save_model_to_file(str(path))


def by_a_session(path):
    """What a session saves of a model that it optimized."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def by_a_session_for_one_image(path):
    """The same of a file of one image: tokens are flattened for Gemm."""
    by_a_session(path)
    assert any(node.op_type == "Gemm" for node in onnx.load(path).graph.node[:-1])


OPTIMIZED = [  # with the opset; before 17 LayerNormalization is ONNX Runtime's own, under ONNX's name
    pytest.param(by_transformers, False, 17, {"SkipLayerNormalization", "BiasGelu"}, id="transformers-timm"),
    pytest.param(by_transformers, True, 17, {"SkipLayerNormalization", "BiasGelu"}, id="transformers-hf", marks=slow),
    pytest.param(by_a_session, False, 14, {"FusedMatMul", "BiasGelu"}, id="session-timm"),
    pytest.param(by_a_session, True, 17, {"FusedMatMul", "BiasGelu"}, id="session-hf", marks=slow),
    pytest.param(by_a_session_for_one_image, False, 17, {"FusedMatMul"}, id="session-one-image"),
    pytest.param(by_a_session_for_one_image, True, 14, {"FusedMatMul"}, id="session-one-image-hf", marks=slow),
]


@pytest.mark.parametrize(("optimize", "hugging", "opset", "fused"), OPTIMIZED)
def test_an_optimized_file_is_reduced(exported, tiny_vit, optimize, hugging, opset, fused):
    module = hugging_vit() if hugging else tiny_vit()
    for block in () if hugging else module.blocks:
        block.attn.fused_attn = False
    path = exported(module, opset, False, dynamic=optimize is not by_a_session_for_one_image)
    optimize(path)
    assert kinds(path) >= fused
    same_reduction(path, module, "tome:r=4")


def test_nothing_of_the_domain_is_left(onnx_file):
    path = onnx_file(
        """
        g (float[1, 4, 8] x, float[8, 24] w, float[24] b, float[8] s) => (float[1, 4, 8] y)
        {
            a = com.microsoft.Attention <num_heads = 2> (x, w, b)
            n, m, d, t = com.microsoft.SkipLayerNormalization(a, x, s, s, s)
            q = com.microsoft.QuickGelu(n)
            f = com.microsoft.FastGelu(q, s)
            p = com.microsoft.FusedMatMul <transB = 1, alpha = 2.0> (f, t)
            y = com.microsoft.FusedMatMul <transA = 1> (p, t)
        }""",
        opset=20,  # as `convert_opset` leaves it
    )
    foreign = read(path)
    assert named(PASSES["unfuse_microsoft"])(foreign) == 6
    assert {node.domain for node in foreign.model.graph.node} == {""}
    onnx.checker.check_model(foreign.model, full_check=False)


# name: (shape of y, initializers, nodes that make y from images)
CASES = {
    "fused": (
        "[1, 24, 24]",
        (
            "float[8] s = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] b = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}, int64[3] f"
            " = {1, 24, 8}"
        ),
        (
            "r = Reshape(images, f) a = com.microsoft.Gelu(r) c = com.microsoft.FastGelu(a, b) d = "
            "com.microsoft.BiasGelu(c, b) e = com.microsoft.QuickGelu(d) g = com.microsoft.SkipLayerNormalization(e, "
            "r, s, b) y = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (g, r)"
        ),
    ),
    "sums": (
        "[1, 24, 8]",
        (
            "float[8] s = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] b = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}, int64[3] f"
            " = {1, 24, 8}"
        ),
        (
            "r = Reshape(images, f) n, m, d, t = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (r, r, s, b, "
            "b) g = com.microsoft.BiasGelu(t, b) y = Add(n, g)"
        ),
    ),
    "heads": (
        "[1, 24, 8]",
        (
            "int64[3] f = {1, 24, 8}, int64[1] one = {1}, float[24] b = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, "
            "7, 8, 9, 1, 2, 3, 4, 5, 6}"
        ),
        (
            "r = Reshape(images, f) t = Transpose <perm = [0, 2, 1]> (r) p = MatMul(r, t) m = Unsqueeze(p, one) "
            "h = com.microsoft.MultiHeadAttention <num_heads = 2> (r, r, r) y = com.microsoft.MultiHeadAttention "
            "<num_heads = 4, scale = 0.3> (h, r, h, b, , m)"
        ),
    ),
    "packed": (
        "[1, 24, 8]",
        (
            "int64[3] f = {1, 24, 8}, int64[2] g = {8, 24}, float[24] b = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, "
            "6, 7, 8, 9, 1, 2, 3, 4, 5, 6}"
        ),
        (
            "r = Reshape(images, f) w = Reshape(images, g) a = com.microsoft.Attention <num_heads = 2> (r, w, b) y = "
            "com.microsoft.Attention <num_heads = 2, scale = 0.3, qkv_hidden_sizes = [8, 8, 8]> (a, w, b)"
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_onnx_runtime_does(onnx_file, name):
    shape, initializers, nodes = CASES[name]
    same(onnx_file(graph(initializers, nodes, shape)))

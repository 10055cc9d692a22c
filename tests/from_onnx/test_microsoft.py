"""Files that ONNX Runtime's optimizers wrote: taken apart, and reduced like the module they came from."""

import onnx
import pytest
import torch
from torch import nn

from edgevit.from_onnx.clean import PASSES
from edgevit.from_onnx.read import read
from edgevit.names import named
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


OPTIMIZED = [  # with the opset; before 17 LayerNormalization is ONNX Runtime's own, under ONNX's name
    pytest.param(by_transformers, False, 17, {"SkipLayerNormalization", "BiasGelu"}, id="transformers-timm"),
    pytest.param(by_transformers, True, 17, {"SkipLayerNormalization", "BiasGelu"}, id="transformers-hf", marks=slow),
    pytest.param(by_a_session, False, 14, {"FusedMatMul", "BiasGelu"}, id="session-timm"),
    pytest.param(by_a_session, True, 17, {"FusedMatMul", "BiasGelu"}, id="session-hf", marks=slow),
]


@pytest.mark.parametrize(("optimize", "hugging", "opset", "fused"), OPTIMIZED)
def test_an_optimized_file_is_reduced(exported, tiny_vit, optimize, hugging, opset, fused):
    module = hugging_vit() if hugging else tiny_vit()
    for block in () if hugging else module.blocks:
        block.attn.fused_attn = False
    path = exported(module, opset, False)
    optimize(path)
    assert kinds(path) == fused
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

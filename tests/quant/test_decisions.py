"""What decides about tokens is found by dataflow; quantizing a tensor is no decision."""

from edgevit.export.rewrite import rewritten
from edgevit.quant.decisions import deciding
from edgevit.quant.flow import operator


def found(graph):
    module = graph.program.module()
    names = deciding(module)
    return {operator(n) for n in module.graph.nodes if n.name in names}


def test_a_similarity_and_its_top_k_decide(traced):
    assert {"matmul", "topk", "amax"} <= found(traced("tome:r=3@1"))
    assert not {"layer_norm", "linear", "scaled_dot_product_attention"} & found(traced("tome:r=3@1"))


def test_a_dense_model_decides_nothing(traced):
    assert found(traced()) == set()


def test_neither_does_a_quantized_one(quantized):
    assert found(quantized(activations="int8")) == set()


def test_decisions_are_found_behind_rewrites_and_quantizers(traced, quantized):
    whole = found(traced("tome:r=3@1"))
    assert found(rewritten(traced("tome:r=3@1"), ("split_qkv", "fold_norm_affine"))) >= whole - {"select", "unbind"}
    assert found(quantized("tome:r=3@1", activations="int8")) >= whole - {"select", "unbind"}

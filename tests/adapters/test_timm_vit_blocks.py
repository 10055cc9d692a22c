"""The rarer kinds of block of timm's VisionTransformer, and real names of its relatives (CLIP, SigLIP, MAE)."""

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.errors import UnsupportedModel

timm = pytest.importorskip("timm")
from timm.layers.attention import Attention  # noqa: E402
from timm.models import vision_transformer  # noqa: E402

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}

VARIANTS = {
    "post_norm": ("ResPostBlock", {}),
    "post_norm_average": ("ResPostBlock", {"global_pool": "avg"}),
    "things": ("ParallelThingsBlock", {"init_values": 0.5}),
    "things_norms": ("ParallelThingsBlock", {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True}),
    "scaling": ("ParallelScalingBlock", {"init_values": 0.5, "qk_norm": True}),
    "scaling_no_qkv_bias": ("ParallelScalingBlock", {"qkv_bias": False}),
}


def build(kind, **options):
    return vision_transformer.VisionTransformer(**SIZES, block_fn=getattr(vision_transformer, kind), **options)


@pytest.fixture(scope="module")
def parts_of(randomize, check):
    """The model of a variant, taken apart and proven once."""
    built = {}

    def get(variant):
        if variant not in built:
            kind, options = VARIANTS[variant]
            built[variant] = check.parts_equal_whole(randomize(build(kind, **options)))
        return built[variant]

    return get


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_equal_the_whole_and_merging_runs(parts_of, check, variant):
    assert check.counts(parts_of(variant).module, "tome:r=3").tokens == (14, 11, 8)


@pytest.mark.parametrize("variant", ["post_norm", "things", "scaling"])
def test_pruning_runs_with_the_right_count(parts_of, check, variant):
    assert check.counts(parts_of(variant).module, "evit:keep=0.5@1,2").tokens == (10, 7, 7)


@pytest.mark.parametrize("variant", VARIANTS)
def test_separate_parts_agree(parts_of, check, variant):
    check.separate_parts_agree(parts_of(variant))


@pytest.mark.parametrize("variant", ["post_norm", "things_norms", "scaling"])
def test_costs_are_counted(parts_of, check, variant):
    check.costs_are_counted(parts_of(variant))


@pytest.mark.parametrize("spec", ["tome:r=4@1", "tome:r=2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_identical_tokens_changes_nothing(randomize, check, variant, spec):
    kind, options = VARIANTS[variant]
    check.merging_twins_changes_nothing(adapt(randomize(build(kind, **options, pos_embed="none"))), spec)


def test_output_projections_in_one(randomize, check):
    from functools import partial

    fused = partial(vision_transformer.ParallelScalingBlock, fuse_out_proj=True)
    model = vision_transformer.VisionTransformer(**SIZES, block_fn=fused)
    check.separate_parts_agree(check.parts_equal_whole(randomize(model)))


def test_gates_of_parallel_attentions(randomize, check):
    model = build("ParallelThingsBlock")
    for block in model.blocks:
        for branch in block.attns:
            branch.attn = Attention(48, 3, qkv_bias=True, gated=True)
    check.separate_parts_agree(check.parts_equal_whole(randomize(model)))


def test_a_gate_keeps_its_place_when_values_come_late(vit, randomize, check):
    model = vit()
    for block in model.blocks:
        block.attn = Attention(48, 3, qkv_bias=True, gated=True)
    check.separate_parts_agree(check.parts_equal_whole(randomize(model)))


def test_a_patched_attention_inside_a_parallel_block_is_refused():
    model = build("ParallelThingsBlock").eval()
    model.blocks[1].attns[1].attn.forward = lambda x: x
    with pytest.raises(UnsupportedModel, match=r"blocks\.1\.attns\.1\.attn is Attention with a patched forward"):
        adapt(model)
    model = build("ParallelThingsBlock").eval()
    model.blocks[1].ffns[0].add_module("extra", nn.Identity())
    with pytest.raises(UnsupportedModel, match=r"blocks\.1\.ffns\.0 has extra"):
        adapt(model)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("variant", ["post_norm", "things", "scaling"])
def test_runs_in_onnx_runtime(parts_of, check, variant, batch, tmp_path):
    check.runs_in_onnx(parts_of(variant), "tome:r=3", batch, tmp_path)


@pytest.mark.parametrize(
    ("name", "pooling", "prefix"),
    [
        ("vit_base_patch16_siglip_224", "map", 0),
        ("vit_base_patch16_siglip_gap_224", "avg", 0),
        ("vit_base_patch32_clip_quickgelu_224", "token", 1),
        ("vit_base_patch16_224.mae", "token", 1),
        ("vit_medium_patch16_gap_240", "avg", 0),
        ("vit_small_patch16_18x2_224", "token", 1),
        ("vit_pwee_patch16_reg1_gap_256", "avg", 1),
    ],
)
def test_real_architectures_by_name(randomize, check, name, pooling, prefix):
    size = {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 3}
    parts = check.parts_equal_whole(randomize(timm.create_model(name, **size)))
    assert (parts.pooling, parts.prefix_tokens) == (pooling, prefix)
    with torch.no_grad():
        check.counts(parts.module, "tome:r=3")

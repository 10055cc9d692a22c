"""timm's Beit: taken apart it computes what it did; the bias of two tokens is that of the positions they keep."""

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.adapters.timm_block import ResidualBlock
from edgevit.errors import UnsupportedModel
from edgevit.tokens.protocol import Tokens

timm = pytest.importorskip("timm")
from timm.models import beit  # noqa: E402

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}
OWN, SHARED = {"use_rel_pos_bias": True, "use_abs_pos_emb": False}, {"use_shared_rel_pos_bias": True}

VARIANTS = {
    "own_bias": {**OWN, "init_values": 0.5},
    "own_bias_token": {**OWN, "init_values": 0.5, "global_pool": "token"},
    "shared_bias": {**SHARED, "global_pool": "token"},
    "both_biases": {**OWN, **SHARED, "swiglu_mlp": True, "scale_mlp": True},
    "no_bias": {"init_values": 0.5},
    "no_qkv_bias": {**OWN, "qkv_bias": False},
    "norm_before_pool": {**OWN, "use_fc_norm": False},
    "not_square": {**OWN, "img_size": (32, 48)},
    "tokens": {**OWN, "global_pool": ""},
}

MODEL = beit.Beit  # what parts_of builds VARIANTS of


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_equal_the_whole(parts_of, variant):
    parts = parts_of(variant)
    assert parts.class_token
    assert parts.prefix_tokens == 1
    assert parts.positional == (variant != "no_bias")


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_runs_with_the_right_count(parts_of, check, variant):
    start = parts_of(variant).tokens
    assert check.counts(parts_of(variant).module, "tome:r=3").tokens == (start - 3, start - 6, start - 9)


@pytest.mark.parametrize("variant", ["own_bias_token", "shared_bias"])
def test_pruning_runs_with_the_right_count(parts_of, check, variant):
    assert check.counts(parts_of(variant).module, "evit:keep=0.5@1,2").tokens == (10, 7, 7)


@pytest.mark.parametrize("variant", ["own_bias", "both_biases", "no_qkv_bias"])
def test_separate_parts_agree(parts_of, check, variant):
    check.separate_parts_agree(parts_of(variant))


@pytest.mark.parametrize("variant", ["own_bias_token", "shared_bias"])
def test_costs_are_counted(parts_of, check, variant):
    check.costs_are_counted(parts_of(variant))


def looked_up(model):
    """Attention whose bias is read entry by entry, by the positions that two tokens came from."""

    def attention(number, block, x, place, size):
        own = model.blocks[number].attn
        layers = [m for m in (own, model.rel_pos_bias) if getattr(m, "relative_position_bias_table", None) is not None]
        tap = ResidualBlock(block.block).project(x, Tokens())  # without positions
        logits = tap.q @ tap.k.transpose(2, 3) * tap.scale
        for layer in layers:
            table, index = layer.relative_position_bias_table.tolist(), layer.relative_position_index.tolist()
            bias = [
                [[[table[index[p][q]][head] for q in where] for p in where] for head in range(block.heads)]
                for where in place
            ]
            logits = logits + torch.tensor(bias)
        if size is not None:
            logits = logits + size.log()[:, None, None, :]
        return logits.softmax(-1) @ tap.v

    return attention


@pytest.mark.parametrize("spec", ["tome:r=3", "evit:keep=0.5@1,2"])
@pytest.mark.parametrize("variant", ["own_bias_token", "shared_bias", "both_biases", "not_square"])
def test_a_reduced_run_looks_each_bias_up_by_where_the_tokens_came_from(randomize, check, variant, spec):
    options = {**SIZES, **VARIANTS[variant], "global_pool": "token"}  # EViT's fused token must not be pooled over
    parts = adapt(randomize(beit.Beit(**options)))
    check.follows_reference(parts, spec, looked_up(parts.module))


@pytest.mark.parametrize("spec", ["tome:r=4@1", "tome:r=2"])
@pytest.mark.parametrize("pooling", ["avg", "token"])
def test_merging_identical_tokens_changes_nothing(randomize, check, pooling, spec):
    model = randomize(beit.Beit(**SIZES, use_abs_pos_emb=False, global_pool=pooling, init_values=0.5))
    check.merging_twins_changes_nothing(adapt(model), spec)


def test_traces_without_dynamic_shapes(parts_of, check):
    check.traces(parts_of("both_biases"), "tome:r=3@1,2", 4)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("variant", ["own_bias", "both_biases"])
def test_runs_in_onnx_runtime(parts_of, check, variant, batch, tmp_path):
    check.runs_in_onnx(parts_of(variant), "tome:r=3", batch, tmp_path)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "beitv2_base_patch16_224"])
def test_real_architectures_by_name(randomize, check, name):
    model = randomize(timm.create_model(name, img_size=64, depth=2, embed_dim=96, num_heads=4))
    assert check.parts_equal_whole(model).positional


def refusal(model):
    with pytest.raises(UnsupportedModel) as refused:
        adapt(model.eval())
    return str(refused.value)


def test_refusals_by_name():
    class Mine(beit.Attention):
        pass

    model = beit.Beit(**SIZES)
    model.blocks[1].attn = Mine(48, 3)
    assert "blocks.1.attn is Mine; this adapter runs timm.models.beit.Attention" in refusal(model)
    model = beit.Beit(**SIZES)
    model.blocks[2].extra = nn.Identity()
    assert "blocks.2 has extra" in refusal(model)
    model = beit.Beit(**SIZES)
    model.forward_features = model.forward_features
    assert "Beit.forward_features is not the library's own" in refusal(model)

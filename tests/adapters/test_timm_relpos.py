"""timm's VisionTransformerRelPos: taken apart it computes what it did; biases follow the tokens' positions."""

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.adapters.timm_block import ResidualBlock
from edgevit.errors import ScheduleError, UnsupportedModel
from edgevit.reduce import reduce
from edgevit.tokens.protocol import Tokens
from edgevit.tokens.schedule import parse_schedule

timm = pytest.importorskip("timm")
from timm.models import vision_transformer_relpos as relpos  # noqa: E402

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}
TABLE, TOKEN = {"rel_pos_type": "bias"}, {"class_token": True, "global_pool": "token"}

VARIANTS = {
    "network": {},
    "network_swin": {"rel_pos_type": "mlp_swin", "rel_pos_dim": 16, "qk_norm": True},
    "network_token": TOKEN,
    "table": {**TABLE, "fc_norm": True},
    "table_token": {**TABLE, **TOKEN},
    "shared_table": {**TABLE, **TOKEN, "shared_rel_pos": True, "init_values": None},
    "post_norm": {**TABLE, **TOKEN, "block_fn": relpos.ResPostRelPosBlock},
    "token_but_average": {**TABLE, "class_token": True},
    "not_square": {**TABLE, "img_size": (32, 48)},
    "tokens": {"global_pool": ""},
}

MODEL = relpos.VisionTransformerRelPos  # what parts_of builds VARIANTS of


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_equal_the_whole(parts_of, variant):
    parts = parts_of(variant)
    assert parts.positional
    assert parts.class_token == VARIANTS[variant].get("class_token", False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_runs_with_the_right_count(parts_of, check, variant):
    start = parts_of(variant).tokens
    assert check.counts(parts_of(variant).module, "tome:r=3").tokens == (start - 3, start - 6, start - 9)


@pytest.mark.parametrize("variant", ["network_token", "shared_table", "post_norm"])
def test_pruning_runs_with_the_right_count(parts_of, check, variant):
    assert check.counts(parts_of(variant).module, "evit:keep=0.5@1,2").tokens == (10, 7, 7)


def test_without_class_token_its_attention_cannot_be_read(parts_of):
    with pytest.raises(ScheduleError, match="no class token"):
        reduce(parts_of("network"), parse_schedule("evit:keep=0.5"))


@pytest.mark.parametrize("variant", ["network_swin", "post_norm"])
def test_separate_parts_agree(parts_of, check, variant):
    check.separate_parts_agree(parts_of(variant))


@pytest.mark.parametrize("variant", ["table_token", "network_token", "post_norm"])
def test_costs_are_counted(parts_of, check, variant):
    check.costs_are_counted(parts_of(variant))  # the network of a bias costs the same however many tokens are left


@pytest.mark.parametrize("spec", ["tome:r=3", "evit:keep=0.5@1,2"])
@pytest.mark.parametrize("variant", ["network_token", "table_token", "shared_table", "post_norm"])
def test_a_reduced_run_looks_each_bias_up_by_where_the_tokens_came_from(parts_of, check, variant, spec):
    model = parts_of(variant).module

    def attention(number, block, x, place, size):
        tap = ResidualBlock(block.block, block.post_norm).project(x, Tokens())
        table = (block.block.attn.rel_pos or model.shared_rel_pos).get_bias()[0].tolist()
        bias = [[[[rows[p][q] for q in where] for p in where] for rows in table] for where in place]
        logits = tap.q @ tap.k.transpose(2, 3) * tap.scale + torch.tensor(bias)
        if size is not None:
            logits = logits + size.log()[:, None, None, :]
        return logits.softmax(-1) @ tap.v

    check.follows_reference(parts_of(variant), spec, attention)


@pytest.mark.parametrize("spec", ["tome:r=4@1", "tome:r=2"])
def test_merging_identical_tokens_changes_nothing_where_the_bias_is_even(randomize, check, spec):
    model = randomize(relpos.VisionTransformerRelPos(**SIZES, rel_pos_type="bias"))
    with torch.no_grad():
        for block in model.blocks:
            block.attn.rel_pos.relative_position_bias_table.fill_(0.3)  # else twins differ by where they stand
    check.merging_twins_changes_nothing(adapt(model), spec)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("variant", ["network", "shared_table"])
def test_runs_in_onnx_runtime(parts_of, check, variant, batch, tmp_path):
    check.runs_in_onnx(parts_of(variant), "tome:r=3", batch, tmp_path)


@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224", "vit_srelpos_small_patch16_224"])
def test_real_architectures_by_name(randomize, check, name):
    check.parts_equal_whole(randomize(timm.create_model(name, img_size=64, depth=2, embed_dim=96, num_heads=4)))


def test_refusals_by_name():
    def refusal(model):
        with pytest.raises(UnsupportedModel) as refused:
            adapt(model.eval())
        return str(refused.value)

    class Mine(relpos.RelPosBlock):
        pass

    assert "blocks.0 is Mine" in refusal(relpos.VisionTransformerRelPos(**SIZES, block_fn=Mine))
    model = relpos.VisionTransformerRelPos(**SIZES)
    model.blocks[2].attn.rel_pos = nn.Identity()
    assert "blocks.2.attn.rel_pos is Identity" in refusal(model)
    model = relpos.VisionTransformerRelPos(**SIZES)
    model.neck = nn.Identity()
    assert "VisionTransformerRelPos has neck" in refusal(model)

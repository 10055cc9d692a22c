"""timm's Eva in all its kinds: taken apart it computes what it did; merged tokens keep one token's rotation."""

import types

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.adapters.timm_eva import EvaBlock, rotation_of
from edgevit.errors import ScheduleError, UnsupportedModel
from edgevit.reduce import reduce
from edgevit.tokens.protocol import Tokens
from edgevit.tokens.schedule import parse_schedule

timm = pytest.importorskip("timm")
from timm.models import eva  # noqa: E402

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}
ROPE = {"use_rot_pos_emb": True}
DINOV3 = {**ROPE, "rope_type": "dinov3", "use_abs_pos_emb": False, "num_reg_tokens": 4, "init_values": 0.5}

VARIANTS = {
    "eva": {},
    "eva_token": {"global_pool": "token", "init_values": 0.5},
    "eva_norm_before_pool": {"use_fc_norm": False},
    "eva02": {**ROPE, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "ref_feat_shape": (2, 2)},
    "eva02_packed_mlp": {**ROPE, "swiglu_mlp": True, "scale_attn_inner": True},
    "post_norm": {**ROPE, "use_post_norm": True},
    "pre_norm_map": {**ROPE, "use_pre_transformer_norm": True, "global_pool": "map"},
    "map_without_prefix": {"class_token": False, "global_pool": "map"},
    "avgmax": {**ROPE, "global_pool": "avgmax"},
    "max": {**ROPE, "global_pool": "max"},
    "no_class_token": {**ROPE, "class_token": False},
    "no_qkv_bias": {**ROPE, "qkv_bias": False},
    "xy_grid": {**ROPE, "rope_grid_indexing": "xy", "rope_grid_offset": 1.0, "img_size": (32, 48)},
    "dinov3": {**DINOV3, "rope_rotate_half": True, "global_pool": "token", "num_classes": 0},
    "dinov3_any_size": {**DINOV3, "rope_rotate_half": True, "dynamic_img_size": True, "use_abs_pos_emb": True},
    "dinov3_no_class_embed": {**DINOV3, "use_abs_pos_emb": True, "no_embed_class": True, "use_fc_norm": True},
    "mixed": {**ROPE, "rope_type": "mixed", "attn_type": "rope", "init_values": 0.5},
    "mrope": {**ROPE, "rope_type": "mrope", "rope_mrope_section": (2, 4, 4), "attn_type": "rope", "num_heads": 2},
    "grouped_queries": {
        **DINOV3, "attn_type": "rope", "qkv_fused": False, "num_heads": 4, "num_kv_heads": (4, 2, 1), "qk_norm": True,
        "attn_only_layer_scale": True,
    },
    "tokens": {**ROPE, "global_pool": ""},
}  # fmt: skip

MODEL = eva.Eva  # what parts_of builds VARIANTS of


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_equal_the_whole(parts_of, variant):
    parts = parts_of(variant)
    assert parts.positional == ("use_rot_pos_emb" in VARIANTS[variant])
    assert parts.prefix_tokens == parts.module.num_prefix_tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_runs_with_the_right_count(parts_of, check, variant):
    parts = parts_of(variant)
    start = parts.tokens
    assert check.counts(parts.module, "tome:r=3").tokens == (start - 3, start - 6, start - 9)


@pytest.mark.parametrize("variant", ["eva_token", "eva02_packed_mlp", "dinov3", "mixed"])
def test_pruning_runs_with_the_right_count(randomize, check, variant):
    model = randomize(eva.Eva(**{**SIZES, **VARIANTS[variant], "global_pool": "token"}))
    prefix = model.num_prefix_tokens
    assert check.counts(model, "evit:keep=0.5@1,2").tokens == (prefix + 9, prefix + 6, prefix + 6)


def test_without_class_token_its_attention_cannot_be_read(parts_of):
    with pytest.raises(ScheduleError, match="no class token"):
        reduce(parts_of("no_class_token"), parse_schedule("evit:keep=0.5"))


@pytest.mark.parametrize("variant", ["eva02", "eva02_packed_mlp", "post_norm", "mixed", "mrope", "grouped_queries"])
def test_separate_parts_agree(parts_of, check, variant):
    check.separate_parts_agree(parts_of(variant))


def test_gated_attention_keeps_its_gate_in_every_placement(randomize, check):
    model = eva.Eva(**SIZES, **ROPE)
    for block in model.blocks:
        block.attn = eva.EvaAttention(48, 3, norm_layer=nn.LayerNorm, scale_norm=False, gated=True)
    check.separate_parts_agree(check.parts_equal_whole(randomize(model)))


@pytest.mark.parametrize("variant", ["eva_token", "dinov3", "mixed", "post_norm", "grouped_queries"])
def test_costs_are_counted(randomize, check, variant):
    options = {**VARIANTS[variant], "global_pool": "token"}  # a weighted mean is not in the convention
    check.costs_are_counted(adapt(randomize(eva.Eva(**{**SIZES, **options}))))


def rotated(x, row, half):
    """One head's vector turned by one row of the embedding, pair by pair. Python lists."""
    width = len(x)
    sin, cos, out = row[:width], row[width:], [0.0] * width
    for first in range(width // 2) if half else range(0, width, 2):
        second = first + (width // 2 if half else 1)
        out[first] = x[first] * cos[first] - x[second] * sin[first]
        out[second] = x[second] * cos[second] + x[first] * sin[second]
    return out


def looked_up(model):
    """Attention that rotates each token by the embedding row of the position it came from."""
    table = model.rope.get_embed(shape=model.patch_embed.grid_size).tolist()
    prefix, half = model.num_prefix_tokens, model.blocks[0].attn.rotate_half

    def attention(number, block, x, place, size):
        plain = EvaBlock(block.block, None, block.post_norm).project(x, Tokens())
        turned = []
        for vectors in (plain.q.tolist(), plain.k.tolist()):
            for image, where in zip(vectors, place, strict=True):
                for head, tokens in enumerate(image):
                    for i, p in enumerate(where):
                        if p >= prefix:
                            rows = table[number][head] if model.rope_mixed else table
                            tokens[i] = rotated(tokens[i], rows[p - prefix], half)
            turned.append(torch.tensor(vectors))
        logits = turned[0] @ turned[1].transpose(2, 3) * plain.scale
        if size is not None:
            logits = logits + size.log()[:, None, None, :]
        return logits.softmax(-1) @ plain.v

    return attention


@pytest.mark.parametrize("spec", ["tome:r=3", "evit:keep=0.5@1,2"])
@pytest.mark.parametrize("variant", ["eva02_packed_mlp", "post_norm", "dinov3", "mixed", "mrope", "grouped_queries"])
def test_a_reduced_run_rotates_each_token_by_where_it_came_from(randomize, check, variant, spec):
    options = {**SIZES, **VARIANTS[variant]}
    if spec.startswith("evit") and options.get("global_pool", "avg") != "token":
        options["global_pool"] = "token"  # EViT leaves one fused token, which no pooling over patches may count
    parts = adapt(randomize(eva.Eva(**options)))
    check.follows_reference(parts, spec, looked_up(parts.module))


@pytest.mark.parametrize("half", [False, True])
def test_prefix_tokens_are_not_turned_at_all(half):
    rotation = rotation_of(torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0)), 2, half)
    x = torch.randn(3, 2, 7, 8, generator=torch.Generator().manual_seed(1))
    turned = rotation.turn(x, *rotation(None))
    assert torch.equal(turned[:, :, :2], x[:, :, :2])
    assert not torch.isclose(turned[:, :, 2:], x[:, :, 2:]).all(dim=-1).any()


@pytest.mark.parametrize("spec", ["tome:r=4@1", "tome:r=2"])
@pytest.mark.parametrize(
    "options",
    [{}, {"global_pool": "token"}, {"global_pool": "map"}, {"global_pool": "avgmax"}, {"use_post_norm": True}],
    ids=["avg", "token", "map", "avgmax", "post_norm"],
)
def test_merging_identical_tokens_changes_nothing(randomize, check, options, spec):
    parts = adapt(randomize(eva.Eva(**SIZES, **options, use_abs_pos_emb=False)))
    check.merging_twins_changes_nothing(parts, spec)


def test_traces_without_dynamic_shapes(parts_of, check):
    check.traces(parts_of("dinov3_any_size"), "tome:r=3@1,2", 4)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "variant", ["eva02", "dinov3_any_size", "mixed", "mrope", "grouped_queries", "post_norm", "pre_norm_map"]
)
def test_runs_in_onnx_runtime(parts_of, check, variant, batch, tmp_path):
    check.runs_in_onnx(parts_of(variant), "tome:r=3", batch, tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "prefix"),
    [
        ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2}, 1),
        ("vit_small_patch16_dinov3", {"img_size": 64, "depth": 2}, 5),
        ("vit_small_patch16_rope_mixed_224", {"img_size": 64, "depth": 2}, 1),
        ("vit_pe_core_tiny_patch16_384", {"img_size": 64, "depth": 2}, 1),
        ("vit_medium_patch16_rope_reg1_gap_256", {"img_size": 64, "depth": 2}, 1),
    ],
)
def test_real_architectures_by_name(randomize, check, name, options, prefix):
    model = randomize(timm.create_model(name, **options))
    assert check.parts_equal_whole(model).prefix_tokens == prefix


def refusal(model):
    with pytest.raises(UnsupportedModel) as refused:
        adapt(model.eval())
    return str(refused.value)


def test_refusals_by_name():
    class Mine(eva.EvaBlock):
        pass

    assert "patch_drop_rate=0" in refusal(eva.Eva(**SIZES, patch_drop_rate=0.5))
    model = eva.Eva(**SIZES)
    model.blocks[1] = Mine(48, 3)
    assert "blocks.1 is Mine" in refusal(model)
    model = eva.Eva(**SIZES)
    model.blocks[1].attn.forward = types.MethodType(lambda self, x, **rest: x, model.blocks[1].attn)
    assert "blocks.1.attn is EvaAttention with a patched forward" in refusal(model)
    model = eva.Eva(**SIZES)
    model.blocks[2].extra = nn.Identity()
    assert "blocks.2 has extra" in refusal(model)
    model = eva.Eva(**SIZES)
    model.forward_head = model.forward_head
    assert "Eva.forward_head is not the library's own" in refusal(model)
    with pytest.raises(UnsupportedModel, match="training mode"):
        adapt(eva.Eva(**SIZES).train())

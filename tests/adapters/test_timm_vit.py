"""timm Vision Transformers of every supported kind: taken apart they compute what they computed before."""

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.reduce import reduce
from edgevit.reduced_vit import dense_parts
from edgevit.tokens.schedule import parse_schedule

timm = pytest.importorskip("timm")
from timm.layers.attention import Attention  # noqa: E402
from timm.models.deit import VisionTransformerDistilled  # noqa: E402

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1

FAMILIES = {
    "vit": {},
    "no_qkv_bias": {"qkv_bias": False},
    "deit_distilled": {"cls": VisionTransformerDistilled},
    "deit3": {"init_values": 1e-6, "no_embed_class": True},
    "dinov2": {"init_values": 1e-5, "global_pool": "token", "num_classes": 0},
    "dinov2_registers": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    "qk_norm": {"qk_norm": True},
    "scale_attn_norm": {"scale_attn_norm": True},
    "scale_mlp_norm": {"scale_mlp_norm": True},
    "clip_pre_norm": {"pre_norm": True},
    "pool_none": {"global_pool": ""},
    "pool_avg": {"global_pool": "avg"},
    "pool_avg_with_prefix": {"global_pool": "avg", "pool_include_prefix": True},
    "pool_avgmax": {"global_pool": "avgmax"},
    "pool_max": {"global_pool": "max"},
    "pool_map": {"global_pool": "map", "class_token": False},
    "pool_map_with_class_token": {"global_pool": "map"},
    "no_class_token": {"class_token": False, "global_pool": "avg"},
    "registers_without_class_token": {"class_token": False, "reg_tokens": 1, "global_pool": "avg"},
    "no_fc_norm": {"global_pool": "avg", "fc_norm": False},
    "no_position": {"pos_embed": "none"},
    "narrow_mlp": {"mlp_ratio": 2.0},
    "not_square": {"img_size": (32, 48)},
}


def images_for(model):
    height, width = model.patch_embed.img_size
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def relative(got, want):
    return float((got - want).abs().max() / want.abs().max())


@pytest.fixture(scope="module")
def model_of(vit):
    """One model and its parts per family, built once."""
    built = {}

    def get(family):
        if family not in built:
            model = vit(**FAMILIES[family])
            built[family] = model, adapt(model)
        return built[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_equal_the_whole(model_of, family):
    model, parts = model_of(family)
    images = images_for(model)
    with torch.no_grad():
        want, got, other = model(images), dense_parts(parts)(images), model(images.flip(0))
    assert relative(got, want) < 1e-5  # float32 sums in the same order; fused kernels may differ in the last bits
    assert relative(other, want) > 1e-2  # the model reads its input, so equality means something


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_runs_with_the_right_count(model_of, family):
    model, parts = model_of(family)
    reduced = reduce(parts, parse_schedule("tome:r=3"))
    start = parts.tokens
    assert start == model.num_prefix_tokens + model.patch_embed.num_patches
    assert reduced.tokens == (start - 3, start - 6)
    with torch.no_grad():
        got, plans = reduced.module.run(images_for(model))
        want = model(images_for(model))
    assert [plan.slots().max().item() + 1 for plan in plans] == list(reduced.tokens)
    assert torch.isfinite(got).all()
    assert got.shape == want.shape  # token outputs come back at full resolution
    assert relative(got, want) > 1e-5  # it did reduce


@pytest.mark.parametrize("family", ["vit", "deit_distilled", "deit3", "dinov2_registers", "qk_norm", "clip_pre_norm"])
def test_pruning_runs_with_the_right_count(model_of, family):
    model, parts = model_of(family)
    reduced = reduce(parts, parse_schedule("evit:keep=0.5@1,2"))
    prefix = parts.prefix_tokens
    assert reduced.tokens == (prefix + 8 + 1, prefix + 5 + 1)
    with torch.no_grad():
        assert torch.isfinite(reduced.module(images_for(model))).all()


def test_gated_attention_runs(vit):
    model = vit()
    for block in model.blocks:
        gated = Attention(48, 3, qkv_bias=True, gated=True)
        with torch.no_grad():
            for parameter in gated.parameters():
                parameter.normal_(0, 0.15)
        block.attn = gated.eval()
    with torch.no_grad():
        assert relative(dense_parts(adapt(model))(IMAGES), model(IMAGES)) < 1e-5


def test_attention_that_is_not_fused_gives_the_same(vit):
    model = vit()
    for block in model.blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        assert relative(dense_parts(adapt(model))(IMAGES), model(IMAGES)) < 1e-5  # softmax in another kernel


@pytest.mark.parametrize(
    ("name", "options", "prefix"),
    [
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, 5),
        ("vit_tiny_patch16_224", {"num_classes": 0}, 1),
        ("vit_base_patch32_clip_224", {"img_size": 64, "depth": 2}, 1),
    ],
)
def test_real_architectures_by_name(name, options, prefix):
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    for module in model.modules():
        if type(module).__name__ == "LayerScale":
            nn.init.uniform_(module.gamma, 0.2, 0.8)  # 1e-5 would hide the whole block
    parts = adapt(model)
    assert parts.prefix_tokens == prefix
    images = images_for(model)[:1]
    with torch.no_grad():
        assert relative(dense_parts(parts)(images), model(images)) < 1e-5


def repeated_patches(vit, **options):
    """A model without positions, and an image whose 16 patches are 4 patches four times each.

    Identical tokens stay identical through every block, so merging them must not change anything.
    """
    model = vit(pos_embed="none", **options)
    tiles = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    order = [i // 4 for i in range(16)]  # each odd position has its twin at an even one, after a merge too
    image = torch.stack([tiles[i] for i in order]).reshape(4, 4, 3, 8, 8).permute(2, 0, 3, 1, 4).reshape(1, 3, 32, 32)
    return model, image


@pytest.mark.parametrize("schedule", ["tome:r=8@1", "tome:r=4@1", "tome:r=8/4@1,2", "tome:r=2"])
@pytest.mark.parametrize(
    "family",
    ["vit", "no_class_token", "pool_avg", "pool_avg_with_prefix", "pool_avgmax", "pool_max", "pool_map", "deit3"],
)
def test_merging_identical_tokens_changes_nothing(vit, family, schedule):
    model, image = repeated_patches(vit, **FAMILIES[family], depth=3)
    with torch.no_grad():
        want = model(image)
        reduced = reduce(adapt(model), parse_schedule(schedule))
        got, plans = reduced.module.run(image)
        assert any(plan is not None for plan in plans)
        assert relative(got, want) < 1e-5  # size-weighted attention and pooling count each token as often as before
        plain = reduce(
            adapt(model),
            parse_schedule(schedule.replace("@", ",prop=off@") if "@" in schedule else schedule + ",prop=off"),
        )
        # unequal sizes without proportional attention are another function, so the equality above is earned
        uneven = schedule in ("tome:r=4@1", "tome:r=2")
        assert not uneven or relative(plain.module(image), want) > 1e-4


def test_average_pool_is_weighted_by_size(vit):
    parts = adapt(vit(**FAMILIES["pool_avg"]))
    tokens = torch.randn(1, 17, 48, generator=torch.Generator().manual_seed(0))
    copies = tokens.clone()
    copies[:, 5] = copies[:, 8] = copies[:, 3]
    kept = [i for i in range(17) if i not in (5, 8)]
    size = torch.ones(1, 15)
    size[0, 3] = 3
    with torch.no_grad():
        assert relative(parts.head(copies[:, kept], size), parts.head(copies, None)) < 1e-5
        assert relative(parts.head(copies[:, kept], None), parts.head(copies, None)) > 1e-3

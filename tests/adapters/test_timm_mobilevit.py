"""timm's MobileViT: maps, patches and sizes; what every staged family must hold is in test_staged.py."""

import pytest

from edgevit.adapters import adapt
from edgevit.errors import UnsupportedModel
from edgevit.reduce import reduce
from edgevit.tokens.schedule import parse_schedule

timm = pytest.importorskip("timm")
from timm.models.byobnet import ByobNet, ByoModelCfg  # noqa: E402
from timm.models.mobilevit import _inverted_residual_block, _mobilevitv2_block  # noqa: E402

from tests.adapters.families_staged import mobilevit, pictures  # noqa: E402

VARIANTS = {
    "maps_of_odd_size": {"size": (40, 56)},
    "patches_of_4": {"patch": 4},
    "no_classes": {"num_classes": 0},
    "no_pooling": {"global_pool": "", "num_classes": 0},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(check, variant):
    check.one_pair_merges(mobilevit(**VARIANTS[variant]))


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({}, [(4, (4, 4)), (4, (2, 2))]),
        ({"size": (40, 56)}, [(4, (3, 4)), (4, (2, 2))]),  # maps of 5x7 and 3x4, stretched to whole patches
        ({"patch": 4}, [(16, (2, 2)), (16, (1, 1))]),
    ],
)
def test_one_stage_per_transformer_and_one_group_per_pixel_of_a_patch(options, stages):
    parts = adapt(mobilevit(**options))
    assert [(s.groups, s.grid) for s in parts.stages] == stages
    assert all(s.restores and s.shortcut and len(s.blocks) == 2 for s in parts.stages)


def network(*blocks, **options):
    sizes = {"stem_chs": 8, "stem_type": "3x3", "stem_pool": "", "downsample": "", "act_layer": "silu"}
    return ByobNet(
        ByoModelCfg(blocks=(*2 * [_inverted_residual_block(d=1, c=8, s=2)], *blocks), **sizes), **options
    ).eval()


def test_version_2_is_refused_with_the_reason():
    model = network(_mobilevitv2_block(d=1, c=12, s=2, transformer_depth=1))
    with pytest.raises(UnsupportedModel, match="MobileViT version 2: its linear attention sums all tokens into one"):
        adapt(model)


def test_another_network_of_the_same_class_has_no_adapter():
    with pytest.raises(UnsupportedModel, match="ByobNet has no adapter"):
        adapt(network())


def test_a_model_that_does_not_name_its_image_size_is_refused():
    model = mobilevit()
    del model.pretrained_cfg
    with pytest.raises(UnsupportedModel, match="does not name its image size"):
        adapt(model)


def test_another_image_size_at_run_time_is_refused():
    module = reduce(adapt(mobilevit()), parse_schedule("tome:r=2@1")).module
    with pytest.raises(UnsupportedModel, match="taken apart for a map of 8x8 and is given one of 16x16"):
        module(pictures(1, (128, 128)))


def test_the_size_on_the_command_line_reaches_the_adapter():
    from edgevit.load_timm import create_timm, timm_preprocess

    model = create_timm("timm:mobilevit_xxs", num_classes=7, input_size=(64, 96), pretrained=False)
    assert adapt(model).image_size == timm_preprocess(model).size == (64, 96)


@pytest.mark.parametrize("name", ["efficientvit_b0", "efficientvit_m0", "fastvit_t8", "efficientformerv2_s0"])
def test_families_whose_attention_needs_the_map_have_no_adapter(name):
    from edgevit.load_timm import create_timm

    with pytest.raises(UnsupportedModel, match="has no adapter, so its tokens cannot be reduced; it exports dense"):
        adapt(create_timm(f"timm:{name}", num_classes=7, input_size=None, pretrained=False))

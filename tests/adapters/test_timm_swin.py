"""timm's Swin, both versions: windows, shifts and masks; what every staged family must hold is in test_staged.py."""

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import UnsupportedModel
from edgevit.tokens.protocol import Tokens

pytest.importorskip("timm")
from tests.adapters.families_staged import swin, swin_v2

VARIANTS = {
    "no_qkv_bias": {"qkv_bias": False},
    "not_square": {"img_size": (32, 64)},
    "window_not_square": {"window_size": (2, 4)},
    "window_covers_the_map": {"window_size": 8, "img_size": 32},
    "always_partition": {"window_size": 4, "img_size": 32, "always_partition": True},
    "pool_max": {"global_pool": "max"},
    "pool_none": {"global_pool": ""},
    "no_classes": {"num_classes": 0},
    "patches_of_8": {"patch_size": 8},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("build", [swin, swin_v2])
def test_variants(check, build, variant):
    check.one_pair_merges(build(**VARIANTS[variant]))


def test_heads_of_their_own_width():
    model = swin(head_dim=6)
    parts = adapt(model)  # proves identity
    assert [block.attention_width for block in parts.blocks] == [12, 12, 24, 24]


def test_windows_of_another_pretraining_and_the_largest_logit_scale():
    model = swin_v2(pretrained_window_sizes=(6, 6))
    with torch.no_grad():
        for stage in model.layers:
            for block in stage.blocks:
                block.attn.logit_scale.fill_(9)  # beyond the limit, which is log(100)
    assert adapt(model).pooling == "avg"


@pytest.mark.parametrize("build", [swin, swin_v2])
def test_every_block_is_a_stage_of_windows(build):
    stages = adapt(build()).stages
    assert [(len(s.blocks), s.groups, s.grid, s.restores) for s in stages] == [
        (1, 16, (4, 4), True), (1, 16, (4, 4), True), (1, 4, (4, 4), True), (1, 4, (4, 4), True),
    ]  # fmt: skip


@pytest.mark.parametrize("build", [swin, swin_v2])
def test_tokens_that_a_shift_brought_together_do_not_see_each_other(build):
    parts = adapt(build())
    with torch.no_grad():
        tap = parts.blocks[1].project(torch.randn(2 * 16, 16, 16), Tokens())
        probabilities = parts.blocks[1].attend(tap, True)[1]
    seen = (probabilities.mean(dim=1) > 1e-6).reshape(2, 4, 4, 4, 4, 4, 4)  # image, window, query, key (down, across)
    across = [i // 2 for i in range(4)]  # a shift by two of four: halves of the last windows
    for image in range(2):
        for query in range(16):
            for key in range(16):
                (qy, qx), (ky, kx) = divmod(query, 4), divmod(key, 4)
                assert seen[image, 1, 1, qy, qx, ky, kx]  # a window inside the map
                assert seen[image, 3, 1, qy, qx, ky, kx] == (across[qy] == across[ky])  # the map's lower end
                assert seen[image, 1, 3, qy, qx, ky, kx] == (across[qx] == across[kx])  # its right end


def test_a_map_that_windows_do_not_divide_is_refused():
    with pytest.raises(UnsupportedModel, match=r"layers.0.blocks.0 pads its 10x10 map to whole windows of 4x4"):
        adapt(swin(img_size=40, depths=(1,), num_heads=(2,)))


@pytest.mark.parametrize("build", [swin, swin_v2])
def test_changing_image_sizes_are_refused(build):
    with pytest.raises(UnsupportedModel, match="dynamic_img_size=True; build it with a fixed img_size"):
        adapt(build(dynamic_img_size=True))

"""timm's Hiera: which blocks reduce, the order of tokens; what every staged family must hold is in test_staged.py."""

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import UnsupportedModel
from edgevit.export.trace import trace
from edgevit.stages import InputSpec

pytest.importorskip("timm")
from tests.adapters.families_staged import hiera, pictures

VARIANTS = {
    "layer_scale": {"init_values": 0.5},
    "window_positions": {"abs_win_pos_embed": True},
    "no_expand_projection": {"use_expand_proj": False},
    "pool_max": {"global_pool": "max"},
    "pool_avgmax": {"global_pool": "avgmax"},
    "pool_none": {"global_pool": ""},
    "no_classes": {"num_classes": 0},
    "two_poolings": {"q_pool": 2},
    "windows_at_the_end": {"mask_unit_attn": (True, True, False, True)},
    "global_everywhere": {"mask_unit_attn": (False, False, False, False), "stages": (2, 2, 1, 2)},
    "not_square": {"img_size": (32, 64)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(check, variant):
    check.one_pair_merges(hiera(**VARIANTS[variant]))


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({}, [(2, (4, 4), True), (1, (2, 2), False)]),
        ({"global_pool": ""}, [(2, (4, 4), True), (1, (2, 2), True)]),
        # blocks 0 (8 across) and 3; 1, 2 and 4 pool or attend in windows
        (
            {"mask_unit_attn": (False, True, False, True), "stages": (2, 1, 2, 2)},
            [(2, (16, 16), True), (1, (4, 4), True)],
        ),
        ({"q_pool": 2}, [(2, (4, 4), True), (1, (4, 4), False)]),
    ],
)
def test_blocks_that_attend_to_everything_and_do_not_pool(options, stages):
    parts = adapt(hiera(**options))
    assert [(len(s.blocks), s.grid, s.restores) for s in parts.stages] == stages


def test_tokens_of_a_stage_lie_row_by_row():
    parts = adapt(hiera())
    stage = parts.stages[0]
    rows = torch.arange(16.0).reshape(1, 4, 4, 1)
    corners = rows.reshape(1, 2, 2, 2, 2, 1).permute(0, 2, 4, 1, 3, 5)  # one pooling of 2x2 is left: [Sy, Sx, h, w]
    assert torch.equal(stage.leave(rows.reshape(1, 16, 1)), corners.reshape(1, 16, 1))
    rolled = stage.enter.reroll(corners.reshape(1, 16, 1), stage.enter.index)
    assert torch.equal(rolled, rows)


def test_a_model_whose_every_block_pools_or_attends_in_windows_is_refused():
    with pytest.raises(UnsupportedModel, match="Hiera has no block with global attention that does not pool"):
        adapt(hiera(mask_unit_attn=(True, True, True, True)))


def test_video_is_refused():
    video = {
        "img_size": (4, 32, 32), "patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4), "patch_padding": (1, 3, 3),
        "q_stride": (1, 2, 2), "mask_unit_size": (1, 8, 8), "sep_pos_embed": True,
    }  # fmt: skip
    with pytest.raises(UnsupportedModel, match="takes inputs of 3 dimensions; this adapter runs images"):
        adapt(hiera(**video))


def test_attention_in_windows_is_traced_with_four_dimensions():
    model = hiera(stages=(1, 2), q_pool=1, mask_unit_size=(2, 2), mask_unit_attn=(True, False))
    images = pictures(2, (64, 64))
    program = trace(model, InputSpec(2, 64, 64)).program  # dense: the model's own five dimensions
    attention = [n for n in program.graph.nodes if n.target is torch.ops.aten.scaled_dot_product_attention.default]
    assert [node.meta["val"].ndim for node in attention] == [4, 4, 4]
    with torch.no_grad():
        want = model(images)
        assert (program.module()(images) - want).abs().max() < 1e-5 * want.abs().max()

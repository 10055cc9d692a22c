"""Tests of the token history and its picture, on tiny models with random weights."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError
from edgevit.picture import MAX_STAGES, MIN_PANEL, Stage, TokenHistory, contact, draw, legend, token_history
from edgevit.reduce import reduce
from edgevit.reduced_vit import dense_parts
from edgevit.tokens.schedule import parse_schedule

SIZE = 64  # 8 x 8 patches


@cache
def tiny(cls=VisionTransformer, depth=6):
    torch.manual_seed(0)
    module = cls(img_size=SIZE, patch_size=8, embed_dim=32, depth=depth, num_heads=2, num_classes=4)
    return adapt(module.eval())


@pytest.fixture(scope="module")
def vit():
    return tiny()


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def history_of(vit, spec):
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return token_history(reduce(vit, parse_schedule(spec)).module, images)


@pytest.mark.parametrize("spec", ["tome:r=12/8@2,5", "evit:keep=0.7@2,4,5", "tome:r=5"])
@pytest.mark.parametrize("cls", [VisionTransformer, VisionTransformerDistilled])
def test_every_patch_has_a_slot_and_every_slot_a_patch(spec, cls):
    vit = tiny(cls)
    history = history_of(vit, spec)
    reduced = reduce(vit, parse_schedule(spec))
    assert (history.tokens, history.prefix) == (vit.tokens, vit.prefix_tokens)
    assert history.end.after == reduced.tokens[-1]
    before = history.tokens
    for stage in history.stages:
        assert (stage.before, stage.after) == (before, reduced.tokens[stage.block - 1])
        assert stage.slots.shape == stage.fused.shape == (64,)
        # The prefix keeps the first slots to itself; the patches fill all others.
        assert set(stage.slots.tolist()) == set(range(history.prefix, stage.after))
        before = stage.after


def test_a_merge_is_for_good_and_tome_drops_nothing(vit):
    first, second = history_of(vit, "tome:r=12/8@2,5").stages
    assert not first.fused.any()
    assert not second.fused.any()
    for slot in set(first.slots.tolist()):
        assert len(set(second.slots[first.slots == slot].tolist())) == 1


def test_slots_follow_the_patches_themselves(vit):
    """An independent check of the composition: a patch's mark must arrive in the slot the history says."""
    model = reduce(vit, parse_schedule("tome:r=12/8@2,5")).module
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plans = model.run(images)[1]
    marks, size = torch.eye(vit.tokens).unsqueeze(0), None  # [1, N, N]: channel i is token i's mark
    for plan in plans:
        if plan:
            marks, size = plan.apply(marks, size)
    slots = token_history(model, images).end.slots
    assert (marks[0].argmax(dim=0)[1:].numpy() == slots).all()
    # A token's size is the number of patches that live in it.
    assert (size[0, 1:].numpy() == np.bincount(slots)[1:]).all()


def test_once_fused_stays_fused(vit):
    stages = history_of(vit, "evit:keep=0.7@2,4,5").stages
    for stage, later in pairwise(stages):
        assert (later.fused | ~stage.fused).all()
        assert later.fused.sum() > stage.fused.sum()
    for stage in stages:
        kept = stage.slots[~stage.fused]
        assert len(set(kept.tolist())) == len(kept)  # evit merges no two patches it keeps
    # ceil(0.7 * 64) = 45 patches stay.
    assert int((~stages[0].fused).sum()) == 45


def test_history_refuses(vit):
    with pytest.raises(ScheduleError, match="nothing to draw"):
        token_history(dense_parts(vit), torch.rand(1, 3, SIZE, SIZE))
    model = reduce(vit, parse_schedule("tome:r=8@2")).module
    with pytest.raises(ValueError, match="one image"):
        token_history(model, torch.rand(2, 3, SIZE, SIZE))


def panels(row, count):
    """Cut a row into its panels, captions off: `[count, h, w, 3]`."""
    side = 4 * SIZE  # 64 pixels, enlarged by a whole factor to at least MIN_PANEL
    gap = (row.width - count * side) // (count - 1)
    pixels = np.asarray(row, dtype=np.int64)
    return np.stack([pixels[:side, i * (side + gap) : i * (side + gap) + side] for i in range(count)])


def per_patch(mask):
    """`[N]` → `[256, 256]`, borders (one pixel at the upper and left side of a patch) left out."""
    cell = np.zeros((32, 32), dtype=bool)
    cell[2:, 2:] = True
    return np.kron(mask.reshape(8, 8), cell).astype(bool)


def test_draw_paints_what_merged_and_nothing_else(vit, image):
    history = history_of(vit, "tome:r=12/8@2,5")
    row = draw(image, history, vit.grid)
    assert row.width >= 3 * MIN_PANEL
    assert row.height > 4 * SIZE
    original, first, _ = panels(row, 3)
    stage = history.stages[0]
    merged = np.bincount(stage.slots, minlength=stage.after)[stage.slots] > 1
    assert 0 < merged.sum() < 64
    assert (first == original)[per_patch(~merged)].all()
    slot = stage.slots[merged][0]
    group = per_patch(stage.slots == slot)
    assert len(np.unique(first[group], axis=0)) == 1  # one flat colour: the mean of its pixels
    cells = np.kron((stage.slots == slot).reshape(8, 8), np.ones((32, 32))).astype(bool)
    assert np.abs(first[group][0] - original[cells].mean(axis=0)).max() <= 0.5  # rounded to a byte


def test_draw_greys_what_was_fused(vit, image):
    history = history_of(vit, "evit:keep=0.7@2,4,5")
    original, *stages = panels(draw(image, history, vit.grid), 4)
    for stage, panel in zip(history.stages, stages, strict=True):
        fused = panel[per_patch(stage.fused)]
        assert (fused[:, 0] == fused[:, 1]).all()
        assert (fused[:, 0] == fused[:, 2]).all()
        assert fused.max() <= 100
        assert (panel == original)[per_patch(~stage.fused)].all()


def test_draw_shows_a_few_of_many_blocks(image):
    vit = tiny(depth=9)
    history = history_of(vit, "tome:r=4")
    assert len(history.stages) == 9
    assert draw(image, history, vit.grid).width == (MAX_STAGES + 1) * 4 * SIZE + MAX_STAGES * 10


def test_draw_keeps_to_its_sizes():
    slots = np.array([0, 0, 1, 2, 3, 4, 5, 6])
    history = TokenHistory(0, 8, (Stage(1, 8, 7, slots, np.zeros(8, dtype=bool)),))
    for size, panel in (((40, 20), (480, 240)), ((224, 224), (224, 224)), ((1000, 800), (448, 358))):
        row = draw(Image.new("RGB", size), history, (2, 4))
        assert row.width == 2 * panel[0] + 10
        assert row.height > panel[1]
    with pytest.raises(ValueError, match="has not 8 patches"):
        draw(Image.new("RGB", (64, 64)), history, (3, 3))


def test_contact_and_legend(vit, image):
    merged, fused = history_of(vit, "tome:r=8@2"), history_of(vit, "evit:keep=0.5@2,4")
    rows = [draw(image, merged, vit.grid), draw(image, fused, vit.grid)]
    sheet = contact(rows)
    assert sheet.width == max(r.width for r in rows)
    assert sheet.height > sum(r.height for r in rows)
    assert "merged" in legend(merged)
    assert "fused" not in legend(merged)
    assert legend(fused).startswith("Dark patches are fused")
    with pytest.raises(ValueError, match="one row"):
        contact([])

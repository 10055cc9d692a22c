"""timm's PiT: the map between stages, the class tokens; what every staged family must hold is in test_staged.py."""

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError
from edgevit.reduce import reduce
from edgevit.tokens.schedule import parse_schedule

pytest.importorskip("timm")
from tests.adapters.families_staged import pictures, pit

VARIANTS = {
    "no_pooling": {"global_pool": ""},
    "no_classes": {"num_classes": 0, "distilled": True},
    "not_square": {"img_size": (48, 64)},
    "one_stage": {"depth": (2,), "base_dims": (8,), "heads": (2,)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(check, variant):
    check.one_pair_merges(pit(**VARIANTS[variant]))


@pytest.mark.parametrize(("distilled", "prefix"), [(False, 1), (True, 2)])
def test_all_stages_but_the_last_give_their_tokens_back(distilled, prefix):
    parts = adapt(pit(distilled=distilled))
    assert [(s.prefix, s.grid, s.restores) for s in parts.stages] == [
        (prefix, (7, 7), True), (prefix, (4, 4), True), (prefix, (2, 2), False),
    ]  # fmt: skip


def test_class_tokens_take_no_part_in_a_merge():
    reduced = reduce(adapt(pit(distilled=True)), parse_schedule("tome:keep=0.5")).module
    with torch.no_grad():
        plans = reduced.run(pictures(2, (64, 64)))[1]
    for plan in plans:
        slots = plan.slots()
        assert slots[:, :2].tolist() == [[0, 1]] * 2
        assert slots[:, 2:].min() >= 2


def test_pruning_runs_where_nothing_comes_back():
    parts = adapt(pit(depth=(3,), base_dims=(8,), heads=(2,)))
    reduced = reduce(parts, parse_schedule("evit:keep=0.5@2"))
    assert reduced.tokens == (50, 1 + 25 + 1, 1 + 25 + 1)
    with torch.no_grad():
        assert torch.isfinite(reduced.module(pictures(1, (64, 64)))).all()


def test_until_is_refused_where_stages_have_ends_of_their_own():
    with pytest.raises(ScheduleError, match="until= restores inside one stage of blocks"):
        reduce(adapt(pit()), parse_schedule("tome:r=2,until=2@1"))

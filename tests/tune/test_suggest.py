"""The next generation: how many, and the same ones for the same record and seed."""

from dataclasses import replace

import pytest

from edgevit.tune.goal import Goal
from edgevit.tune.record import Record
from edgevit.tune.space import FIRST_PLACE, Space
from edgevit.tune.suggest import GENERATION, suggest

pytest.importorskip("optuna")
SPACE = Space(("tome", "evit"), ("fp32",), 1, {}, 12, {})
DENSE = Record(
    0, 0, 0, 1, SPACE.dense("fp32"), "none", "fp32", {}, "complete", "", None, None,
    {"drop": 0.0, "smoothed_drop": 0.0, "ratio": 1.0},
)  # fmt: skip


def chosen(**others):
    return suggest(SPACE, Goal("max-drop", 1.0), [DENSE], 3, 0, **others)


def test_a_generation_has_four_new_choices_or_as_many_as_asked():
    for together in (GENERATION, 1, 9):
        found = chosen(together=together)
        assert len({str(SPACE.point(params)) for params in found}) == len(found) == together
        assert all(params["method"] != "none" for params in found)


def test_other_precisions_come_after_the_first_choices_of_the_sampler():
    space = Space(("tome", "evit"), ("fp32", "w4"), 1, {}, 12, {})

    def methods(generation, records=()):
        found = suggest(space, Goal("max-drop", 1.0), [DENSE, *records], generation, 0)
        return [(params["method"], params["precision"]) for params in found]

    assert methods(1) == [("tome", "fp32"), ("evit", "fp32")]
    assert {method for method, _ in methods(4)} <= {"tome", "evit"}
    assert methods(5) == [("none", "w4")]
    tried = replace(DENSE, trial=1, params=space.dense("w4"), precision="w4")
    assert {method for method, _ in methods(6, [tried])} <= {"tome", "evit"}


def reduced(method, macs, drop=None):
    """A trial at the first place; without a drop it ended early."""
    params = {**SPACE.first(method, "fp32"), "macs": macs}
    state, figures = (
        ("pruned", {}) if drop is None else ("complete", {"drop": drop, "smoothed_drop": drop, "ratio": 1.2})
    )
    return replace(DENSE, params=params, reduce=method, state=state, figures=figures)


@pytest.mark.parametrize(
    ("records", "amounts"),
    [
        ([("tome", 0.75, 0.5)], [("tome", 0.6)]),
        ([("tome", 0.75, 0.5), ("tome", 0.6, None)], [("tome", 0.65)]),
        ([("tome", 0.75, None), ("evit", 0.75, 1.5)], [("tome", 0.85), ("evit", 0.85)]),
        ([("tome", 0.7, 0.5), ("tome", 0.65, None), ("evit", 0.75, 0.0)], [("evit", 0.6)]),
    ],
)
def test_amounts_are_halved_between_what_holds_and_what_does_not(records, amounts):
    records = [DENSE, *(reduced(*record) for record in records)]
    found = suggest(SPACE, Goal("max-drop", 1.0), records, 2, 0)
    assert [(params["method"], params["macs"]) for params in found] == amounts
    assert all(params["place"] == FIRST_PLACE for params in found)


def test_nothing_is_halved_where_no_drop_is_asked():
    found = suggest(SPACE, Goal("pareto"), [DENSE, reduced("tome", 0.75, 0.5)], 2, 0)
    assert len(found) == GENERATION


def test_without_a_useful_precision_the_others_are_all_that_is_left():
    space = Space(("tome",), ("fp32", "w4"), 1, {}, 12, {})
    bad = replace(DENSE, figures={"drop": 5.0, "smoothed_drop": 5.0, "ratio": 1.0})
    assert suggest(space, Goal("max-drop", 1.0), [bad], 1, 0) == [space.dense("w4")]


def test_the_same_record_and_seed_give_the_same_choices():
    assert chosen() == chosen()
    assert chosen(together=6)[:GENERATION] == chosen()

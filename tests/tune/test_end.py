"""The end of a study: who is measured again, and how much of the budget is kept for it."""

from types import SimpleNamespace

import pytest

from edgevit.tune.goal import Goal
from edgevit.tune.record import Record
from edgevit.tune.result import finalists
from edgevit.tune.run import FINAL_LOOKS, Search

LOOKS = {"engine accuracy": 70.0, "latency": 30.0}


def record(trial, drop, ratio, interval, reduce="tome:r=8"):
    figures = {"drop": drop, "smoothed_drop": drop, "ratio": ratio, "ratio_ci95": interval, "median_ms": 10 / ratio}
    return Record(
        trial, 1, trial, 1, {}, reduce, "int8", {}, "complete", f"export {trial}", figures=figures, seconds=LOOKS
    )


def again(goal, records):
    return [r.trial for r in finalists(goal, records)]


def test_only_what_may_be_the_fastest_is_measured_again():
    fast, near, slow = (
        record(1, 0.9, 2.4, (2.1, 2.7)),
        record(2, 0.5, 2.1, (1.9, 2.2)),
        record(3, 0.2, 1.8, (1.7, 2.0)),
    )
    dense = record(4, 0.0, 1.5, (1.4, 1.6), "none")
    assert again(Goal("max-drop", 1.0), [fast, near, slow, dense]) == [1, 2, 4]
    assert again(Goal("latency", 100.0), [fast, near, slow, dense]) == [4, 3, 2]  # the most accurate are asked for


def test_without_an_interval_nothing_is_ruled_out():
    assert again(Goal("max-drop", 1.0), [record(1, 0.9, 2.4, (None, None)), record(2, 0.5, 2.1, (1.9, 2.0))]) == [1, 2]


@pytest.mark.parametrize("late", [-1, 1])
def test_of_the_budget_what_the_end_takes_is_kept(late):
    """Half a usual trial may still begin; two finalists' session and twice 200 of 100 images at 0.1 s are left."""
    kept = 50 + FINAL_LOOKS * 30 * 2 + 2 * 10.0 * 2
    settings = SimpleNamespace(trials=None, budget_s=1200.0, goal=Goal("max-drop", 1.0))
    baseline = SimpleNamespace(seconds=10.0)
    shop = SimpleNamespace(settings=settings, baseline=baseline, search=range(100), holdout=range(200))
    records = [
        record(1, 0.5, 2.0, (1.9, 2.1)),
        record(2, 0.0, 1.5, (1.4, 1.6), "none"),
        record(3, 0.9, 1.8, (1.7, 1.9)),
    ]
    search = Search(shop, SimpleNamespace(spent_s=1200.0 - kept + late))
    assert bool(search._enough(records, 0)) is (late > 0)

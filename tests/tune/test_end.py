"""The end of a study: who is measured again, and how much of the budget is kept for it."""

from types import SimpleNamespace

import pytest

from edgevit.tune.goal import Goal
from edgevit.tune.record import Record
from edgevit.tune.result import _finalists
from edgevit.tune.run import FINAL_LOOKS, Search

LOOKS = {"engine accuracy": 70.0, "latency": 30.0}


def record(trial, drop, ratio, interval, reduce="tome:r=8"):
    figures = {"drop": drop, "smoothed_drop": drop, "ratio": ratio, "ratio_ci95": interval, "median_ms": 10 / ratio}
    return Record(
        trial, 1, trial, 1, {}, reduce, "int8", {}, "complete", f"export {trial}", figures=figures, seconds=LOOKS
    )


def again(goal, records):
    shop = SimpleNamespace(settings=SimpleNamespace(goal=goal))
    return [r.trial for r in _finalists(shop, records)]


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


@pytest.mark.parametrize(
    ("spent", "ends"), [(1200 - 50 - FINAL_LOOKS * 30 - 1, False), (1200 - 50 - FINAL_LOOKS * 30 + 1, True)]
)
def test_of_the_budget_what_the_end_takes_is_kept(spent, ends):
    """Half a usual trial may still begin, and seven sessions' time is left."""
    settings = SimpleNamespace(trials=None, budget_s=1200.0)
    trials = SimpleNamespace(spent_s=spent)
    search = Search(SimpleNamespace(settings=settings), trials)
    records = [record(n, 0.0, 2.0, (1.9, 2.1)) for n in range(3)]
    assert bool(search._enough(records, 0)) is ends

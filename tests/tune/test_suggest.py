"""The next generation: how many, and the same ones for the same record and seed."""

import pytest

from edgevit.tune.goal import Goal
from edgevit.tune.record import Record
from edgevit.tune.space import Space
from edgevit.tune.suggest import GENERATION, suggest

pytest.importorskip("optuna")
SPACE = Space(("tome", "evit"), ("fp32",), 1, {}, 12, {})
DENSE = Record(
    0, 0, 0, 1, SPACE.dense("fp32"), "none", "fp32", {}, "complete", "", None, None, {"drop": 0.0, "ratio": 1.0}
)


def chosen(**others):
    return suggest(SPACE, Goal("max-drop", 1.0), [DENSE], 3, 0, **others)


def test_a_generation_has_four_new_choices_or_as_many_as_asked():
    for together in (GENERATION, 1, 9):
        found = chosen(together=together)
        assert len({str(SPACE.point(params)) for params in found}) == len(found) == together
        assert all(params["method"] != "none" for params in found)


def test_the_same_record_and_seed_give_the_same_choices():
    assert chosen() == chosen()
    assert chosen(together=6)[:GENERATION] == chosen()

"""Where the flips end a trial."""

from types import SimpleNamespace

import pytest

from edgevit.tune.fidelity import float_accuracy
from edgevit.tune.goal import Goal
from edgevit.tune.space import Point
from edgevit.tune.workshop import Paired

POINT = Point("tome:r=8", "int8")


def judged(goal, found):
    shop = SimpleNamespace(
        settings=SimpleNamespace(goal=goal),
        reduced=lambda point: SimpleNamespace(module=None),
        paired=lambda run, batch, limit: found,
    )
    return float_accuracy(shop, SimpleNamespace(limit=goal.limit), POINT, {})


@pytest.mark.parametrize(
    ("goal", "found", "why"),
    [
        (Goal("max-drop", 1.0), Paired(7, 1, 400, worse=False), "in float loses 1.50 points on the search images"),
        (Goal("max-drop", 1.0), Paired(5, 1, 400, worse=False), None),
        (Goal("max-drop", 1.0), Paired(9, 0, 32, worse=True), "in float clearly loses more than 1 points"),
        (Goal("pareto"), Paired(7, 1, 400, worse=False), None),
    ],
)
def test_a_float_model_that_loses_too_much_is_not_built(goal, found, why):
    ended = judged(goal, found)
    assert ended is None if why is None else ended.startswith(why)

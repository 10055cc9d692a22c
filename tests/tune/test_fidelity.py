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
        (
            Goal("max-drop", 1.0),
            Paired(7, 1, 400, worse=False, smoothed=(1.2, 0.4)),
            "in float loses 1.50 points on the search images",
        ),
        (Goal("max-drop", 1.0), Paired(5, 1, 400, worse=False, smoothed=(0.9, 0.4)), None),
        (
            Goal("max-drop", 1.0),
            Paired(9, 0, 32, worse=True, smoothed=(20.0, 5.0)),
            "in float clearly loses more than 1 points",
        ),
        (
            Goal("max-drop", 1.0),
            Paired(5, 5, 400, worse=False, smoothed=(1.6, 0.5)),
            "in float loses 0.00 points on the search images, 1.60 where near misses count in part",
        ),
        (Goal("pareto"), Paired(7, 1, 400, worse=False, smoothed=(1.2, 0.4)), None),
    ],
)
def test_a_float_model_that_loses_too_much_is_not_built(goal, found, why):
    ended = judged(goal, found)
    assert ended is None if why is None else ended.startswith(why)

"""Energy of a window of time, from samples of power or from a counter: pure functions.

Times are monotonic seconds, power is in watts, energy in joules. Standard library alone, Python 3.9 or later.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, Optional


class Energy(NamedTuple):
    """Joules of one inference; `net` is without what the device draws idle, None where that is unknown."""

    gross_j: float
    net_j: Optional[float]  # noqa: UP045 (evaluated by Python 3.9)


def at(times: Sequence[float], values: Sequence[float], moment: float) -> float:
    """The value at a moment, on a straight line between its neighbours; the nearest one outside.

    >>> at([0, 2], [10, 20], 1)
    15.0
    """
    place = bisect_left(times, moment)
    if place == 0:
        return float(values[0])
    if place == len(times):
        return float(values[-1])
    before, after = times[place - 1], times[place]
    share = (moment - before) / (after - before)
    return float(values[place - 1] + share * (values[place] - values[place - 1]))


def integral(times: Sequence[float], values: Sequence[float], start: float, end: float) -> float:
    """The integral from start to end by trapezoids, with the values at both ends on straight lines.

    >>> integral([0, 1, 3], [2, 4, 4], 0.5, 2)
    5.75
    """
    inside = [(t, v) for t, v in zip(times, values) if start < t < end]  # noqa: B905 (Python 3.9 knows no strict)
    points = [(start, at(times, values, start)), *inside, (end, at(times, values, end))]
    return sum((t1 - t0) * (v0 + v1) / 2 for (t0, v0), (t1, v1) in zip(points, points[1:]))  # noqa: B905, RUF007


def unwrapped(values: Sequence[float], limit: float) -> list[float]:
    """A counter that starts again at 0 after `limit`, as one that does not.

    >>> unwrapped([90, 99, 5, 20], limit=100)
    [90.0, 99.0, 105.0, 120.0]
    """
    found: list[float] = []
    turns = 0.0
    for number, value in enumerate(values):
        if number and value < values[number - 1]:
            turns += limit
        found.append(float(value + turns))
    return found


def per_inference(joules: float, seconds: float, inferences: int, idle_w: float | None) -> Energy:
    """Of one inference among those that filled a window.

    >>> per_inference(30.0, 10.0, 100, idle_w=1.0)
    Energy(gross_j=0.3, net_j=0.2)
    """
    net = None if idle_w is None else (joules - idle_w * seconds) / inferences
    return Energy(joules / inferences, net)

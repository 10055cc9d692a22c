"""What a collector sees, and what of it belongs to a window of time: pure functions.

Standard library alone, Python 3.9 or later: sessions on other devices are sent this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from edgevit.devices.energy import at, integral, per_inference, unwrapped

Sample = dict[str, Any]
"""One look at the device; every key but `t` may be missing.

t: monotonic seconds. power_w: rail → watts. total_w: watts of the whole, as the collector defines it. energy_j:
domain → joules since some moment. wraps_j: domain → where that counter starts again. temp_c: sensor → degrees.
clock_mhz: unit → MHz. throttled: names of the limits that hold now. ram_bytes: used.
"""

MOST_SAMPLES_APART_S = 2.0
"""A window whose samples are further apart, or further from its ends, has no energy: it would be a guess."""


def window(samples: Sequence[Sample], start: float, end: float, inferences: int, idle_w: Optional[float]) -> Sample:  # noqa: UP045
    """What the samples of one collector say about [start, end], in which so many inferences ran.

    `energy_j_per_inference` and `power_w` of the whole, where it measures power densely enough; `temp_c` at the start,
    the end and the highest; `clock_mhz` lowest and highest of each unit; `throttled`: limits that held at any moment;
    `ram_bytes`: the most; `samples`: how many lie inside.
    """
    inside = [s for s in samples if start <= s["t"] <= end]
    found: Sample = {"samples": len(inside)}
    joules = energy_j(samples, start, end)
    if joules is not None:
        energy = per_inference(joules, end - start, inferences, idle_w)
        found["power_w"] = joules / (end - start)
        found["energy_j_per_inference"] = {"gross": energy.gross_j, "net": energy.net_j}
    hottest = [max(s["temp_c"].values()) for s in inside if s.get("temp_c")]
    if hottest:
        found["temp_c"] = {"start": hottest[0], "end": hottest[-1], "max": max(hottest)}
    clocks: dict[str, list[float]] = {}
    for sample in inside:
        for unit, value in sample.get("clock_mhz", {}).items():
            clocks.setdefault(unit, []).append(value)
    if clocks:
        found["clock_mhz"] = {unit: [min(values), max(values)] for unit, values in clocks.items()}
    if any("throttled" in s for s in inside):
        found["throttled"] = sorted({name for s in inside for name in s.get("throttled", ())})
    used = [s["ram_bytes"] for s in inside if "ram_bytes" in s]
    if used:
        found["ram_bytes"] = max(used)
    return found


def energy_j(samples: Sequence[Sample], start: float, end: float) -> Optional[float]:  # noqa: UP045
    """Joules of [start, end], from counters if there are some, else from the power of the whole; None: not known."""
    counted = [s for s in samples if s.get("energy_j")]
    if _covers(counted, start, end):
        times = [s["t"] for s in counted]
        total = 0.0
        for domain in counted[0]["energy_j"]:
            limit = counted[0].get("wraps_j", {}).get(domain, 0.0)
            values = unwrapped([s["energy_j"][domain] for s in counted], limit)
            total += at(times, values, end) - at(times, values, start)
        return total
    powered = [s for s in samples if s.get("total_w") is not None]
    if _covers(powered, start, end):
        return integral([s["t"] for s in powered], [s["total_w"] for s in powered], start, end)
    return None


def mean_w(samples: Sequence[Sample], start: float, end: float) -> Optional[float]:  # noqa: UP045
    """The mean power of a window: of the idle device, what is subtracted later."""
    joules = energy_j(samples, start, end)
    return None if joules is None else joules / (end - start)


def _covers(samples: Sequence[Sample], start: float, end: float) -> bool:
    """Whether samples lie close enough, all the way from start to end."""
    before = [s["t"] for s in samples if s["t"] < start][-1:]
    after = [s["t"] for s in samples if s["t"] > end][:1]
    times = [*before, *(s["t"] for s in samples if start <= s["t"] <= end), *after]
    if end <= start or len(times) < 2:
        return False
    gaps: list[float] = [t1 - t0 for t0, t1 in zip(times, times[1:])]  # noqa: B905, RUF007
    return bool(max([*gaps, times[0] - start, end - times[-1]]) <= MOST_SAMPLES_APART_S)

"""Latency of a candidate beside dense, in the same session."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from edgevit.bundle import Bundle
from edgevit.devices.plan import BenchPlan
from edgevit.errors import EdgeVitError, MachineBusy

if TYPE_CHECKING:
    from edgevit.runtimes.base import Runtime

SHORT = BenchPlan(rounds=6, warmup_s=0.3, min_samples=32, min_seconds=0.6, max_seconds=3)
"""A trial's session: 25 s for two engines of 10 to 30 ms, most of it loading."""
LONG = BenchPlan(max_seconds=5)
"""The finalists' session. A machine that others disturb is never stable: in turns both sides wait for it alike."""
LONG_IN_TURNS = 8
"""Its rounds where two engines take turns: each is a block, of which A B B A makes six of twelve rounds."""
TURN = 3
"""Inferences before candidate and dense take turns, where their runner can: others that use the machine meet both."""
WAIT_S = 2.0
"""Between two looks whether the machine's profile lock is free."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of the candidate and of dense; ratio: dense / candidate, above 1 is faster, with its 95 % interval.

    fake: made up, for tests.
    """

    median_ms: float
    ci95_ms: tuple[float | None, float | None]
    dense_ms: float
    ratio: float
    ratio_ci95: tuple[float | None, float | None]
    meter: str
    fake: bool

    def to_json(self) -> dict[str, Any]:
        """Figures of a trial's record."""
        return asdict(self)


class Meter(Protocol):
    """Measures latency. name: in every record."""

    name: str
    local: bool
    """Whether it measures on this machine, where nothing else may run meanwhile."""

    def time(self, candidates: Sequence[Bundle], dense: Bundle, long: bool = False) -> list[Timing]:
        """Each candidate beside dense. Raises MeasureError."""


class BenchMeter:
    """The device runner: fresh processes, in turns or A B B A, under the lock of the machine."""

    def __init__(self, device: str) -> None:
        from edgevit.devices.config import LOCAL, find

        self.name, self.local = device, device == LOCAL
        self.device = None if self.local else find(device)

    def time(self, candidates: Sequence[Bundle], dense: Bundle, long: bool = False) -> list[Timing]:
        """Waits while another session measures on that machine."""
        from edgevit.devices import pair
        from edgevit.devices.bench import profile
        from edgevit.measure import check_kind, job

        for bundle in (*candidates, dense):
            check_kind(bundle, self.device.kind if self.device else "local")
        there = self.device is not None
        jobs = [job(bundle, f"candidate {i}", there) for i, bundle in enumerate(candidates)]
        plan = LONG if long else SHORT
        if self.local and all(j.runner in pair.RUNNERS for j in jobs):
            plan = replace(plan, turn=TURN, rounds=min(plan.rounds, LONG_IN_TURNS))
        while True:
            try:
                found = profile(jobs, job(dense, "dense", there), plan, device=self.device).to_json()
                break
            except MachineBusy:
                time.sleep(WAIT_S)
        results = {row["bundle"]: row for row in found["results"]}
        timings = []
        for name in (j.bundle for j in jobs):
            row, speed = results[name], found["speedup"][name]
            interval = tuple(row["ci95_ms"]), tuple(speed["ci95"])
            dense_ms = results["dense"]["median_ms"]
            timings.append(
                Timing(row["median_ms"], interval[0], dense_ms, speed["ratio"], interval[1], self.name, found["fake"])
            )
        return timings


class FakeMeter:
    """Latency as a formula, so that the same study has the same winner; it measures nothing and says so."""

    name, local = "fake", False
    MS_PER_GMAC = 10.0
    MS_PER_POINT = 0.0005
    """A reduction point's own cost."""
    SPEED: ClassVar = {"int8": 2.0, "bf16": 1.5, "fp16": 1.5}
    """By the first part of the precision; any other: 1."""

    def time(self, candidates: Sequence[Bundle], dense: Bundle, long: bool = False) -> list[Timing]:
        """From the manifests."""
        base = self._ms(dense)
        times = [self._ms(bundle) for bundle in candidates]
        return [Timing(ms, (ms, ms), base, base / ms, (base / ms, base / ms), self.name, True) for ms in times]

    def _ms(self, bundle: Bundle) -> float:
        schedule = bundle.manifest["schedule"]
        tokens = schedule["tokens"] or [0]
        points = sum(a != b for a, b in pairwise(tokens))
        speed = self.SPEED.get(bundle.manifest["precision"].split("+")[0], 1.0)
        return float(self.MS_PER_GMAC * schedule["macs"]["reduced"] / 1e9 / speed + self.MS_PER_POINT * points)


def meter(device: str) -> Meter:
    """The meter of `--device`. Raises MeasureError."""
    return FakeMeter() if device == FakeMeter.name else BenchMeter(device)


def check_times(found: Meter, target: Runtime) -> None:
    """See that this machine can time a target, where it is this one that measures. Raises EdgeVitError."""
    if found.local and not target.runner:
        raise EdgeVitError(f"edgevit tune measures, and this machine cannot time {target.name}")

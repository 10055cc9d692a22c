"""What a study is after: the fastest engine within a drop, the most accurate one within a latency, or the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgevit.errors import EdgeVitError
from edgevit.report_rows import LOSS_LIMIT

if TYPE_CHECKING:
    from edgevit.tune.record import Record

HOPELESS = 10.0
"""Points of top-1; where the goal names no drop, a candidate that loses more is not looked at further."""
BAD = 10.0
"""What the sampler is told of a candidate that was stopped: worse than any that was measured."""
PENALTY = 1.0
"""What a point of drop beyond --max-drop, or a latency of twice --latency, weighs against the dense latency."""

Figures = Mapping[str, Any]


def loss(figures: Figures) -> float:
    """Points that a candidate is taken to lose: what it lost, or what its near misses say, whichever is more."""
    return float(max(figures["drop"], figures["smoothed_drop"]))


@dataclass(frozen=True)
class Goal:
    """kind and its limit: points of top-1, or milliseconds; `pareto` has none."""

    kind: Literal["max-drop", "latency", "pareto"]
    limit: float = 0.0

    def __post_init__(self) -> None:
        least = "above 0" if self.kind == "latency" else "0 or more"
        if not math.isfinite(self.limit) or self.limit < 0 or (self.kind == "latency" and self.limit == 0):
            raise EdgeVitError(f"--{self.kind} {self.limit:g} must be a number, {least}")

    def __str__(self) -> str:
        units = {"max-drop": f"{self.limit:g} points", "latency": f"{self.limit:g} ms"}
        return f"--{self.kind} {units[self.kind]}" if self.kind in units else f"--{self.kind}"

    @property
    def objectives(self) -> int:
        """How many numbers `values` gives; each is to be small."""
        return 2 if self.kind == "pareto" else 1

    def meets(self, figures: Figures) -> bool:
        """Whether a measured candidate is good enough. Where the front is asked, its pick loses at most a point."""
        if self.kind == "latency":
            return bool(figures["median_ms"] <= self.limit)
        return loss(figures) <= (self.limit if self.kind == "max-drop" else LOSS_LIMIT)

    def values(self, record: Record) -> tuple[float, ...]:
        """What the sampler is told."""
        if record.state != "complete":
            return (BAD,) * self.objectives
        drop, share = record.figures["drop"], 1 / record.figures["ratio"]
        if self.kind == "pareto":
            return drop, share
        if self.kind == "latency":
            return (drop + PENALTY * max(0.0, record.figures["median_ms"] / self.limit - 1),)
        return (share + PENALTY * max(0.0, loss(record.figures) - self.limit),)

    def ceiling(self, records: Sequence[Record]) -> float:
        """The drop that a candidate of the next generation may not clearly exceed, in points."""
        if self.kind == "max-drop":
            return self.limit
        if self.kind == "pareto":
            return HOPELESS
        drops = [r.figures["drop"] for r in records if r.state == "complete" and self.meets(r.figures)]
        return max(0.0, float(min([*drops, HOPELESS])))

    def order(self, figures: Figures) -> tuple[float, float]:
        """Sorts candidates that are good enough, best first."""
        lost = loss(figures)
        return (lost, -figures["ratio"]) if self.kind == "latency" else (-figures["ratio"], lost)


def front(records: Sequence[Record]) -> list[Record]:
    """The measured candidates that no other one beats in both accuracy and speed, fastest first."""
    best: list[Record] = []
    done = [r for r in records if r.state == "complete"]
    for record in sorted(done, key=lambda r: (-r.figures["ratio"], r.figures["drop"], r.place)):
        if not best or record.figures["drop"] < best[-1].figures["drop"]:
            best.append(record)
    return best

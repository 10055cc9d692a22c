"""What a session found: the summary with the documented keys, the raw record, and the file of both."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from edgevit.devices import stats
from edgevit.devices.plan import BenchPlan
from edgevit.devices.sensed import sensed, throttled
from edgevit.errors import MeasureError
from edgevit.stages import Measurement

SCHEMA = 1


class Side(NamedTuple):
    """Where a round stands: its block, which side of the comparison, and the bundle compared there."""

    block: int
    side: Literal["bundle", "against"]
    compared: str


@dataclass(frozen=True)
class Profile:
    """One session.

    `sides` and `records` (what each runner wrote, less the samples) go with `measurement.rounds`.
    """

    measurement: Measurement
    sides: tuple[Side, ...]
    records: tuple[Mapping[str, Any], ...]
    plan: BenchPlan
    against: str | None = None

    @property
    def fake(self) -> bool:
        """Whether any round was fabricated: then nothing here is a measurement."""
        return any(record["fake"] for record in self.records)

    def speedups(self) -> dict[str, stats.Speedup]:
        """Each bundle compared with `against`, from its own blocks."""
        medians: dict[str, dict[int, dict[str, list[float]]]] = {}
        if self.against is None:
            return {}
        for side, found in zip(self.sides, self.measurement.rounds, strict=True):
            block = medians.setdefault(side.compared, {}).setdefault(side.block, {})
            block.setdefault(side.side, []).extend(_parts(found.samples_ms, self.plan.turn))
        return {
            name: stats.speedup(
                [stats.Block(tuple(block["against"]), tuple(block["bundle"])) for block in blocks.values()]
            )
            for name, blocks in medians.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The summary: the keys scripts depend on, and more. What too few samples cannot give is null."""
        names = dict.fromkeys(found.bundle for found in self.measurement.rounds)
        return {
            "device": dict(self.measurement.device),
            "conditions": self._conditions(),
            "results": [self._result(name) for name in names],
            "speedup": {
                name: {**asdict(found), "ci95": list(found.ci95), "against": self.against}
                for name, found in self.speedups().items()
            },
            "against": self.against,
            "fake": self.fake,
            "notes": self.notes(),
        }

    def raw(self) -> dict[str, Any]:
        """Everything, raw samples included, in the order it was measured."""
        return {
            "schema": SCHEMA,
            "fake": self.fake,
            "plan": asdict(self.plan),
            "device": dict(self.measurement.device),
            "conditions": dict(self.measurement.conditions),
            "rounds": [
                {**side._asdict(), **_finite(asdict(found)), "record": dict(record)}
                for side, found, record in zip(self.sides, self.measurement.rounds, self.records, strict=True)
            ],
        }

    def notes(self) -> list[str]:
        """What a reader of the numbers must know, in sentences."""
        notes = []
        if self.fake:
            notes.append("FAKE: a fabricated record, not a measurement")
        if self.plan.rounds < stats.MIN_BOOTSTRAP:
            notes.append(f"{self.plan.rounds} rounds a bundle are few: intervals are wide, or missing")
        before = self.measurement.conditions.get("before", {})
        if (before.get("loadavg") or 0) > 0.25 * (before.get("usable_cores") or 1):
            notes.append(f"load average {before['loadavg']} before the start: something else was running")
        for name, found in self.speedups().items():
            if found.differs is False:
                notes.append(f"{name} against {self.against}: no difference beyond the noise of this session")
        unsettled = sum(not record["warmup"]["stable"] for record in self.records)
        if unsettled and self.plan.warmup_s > 0:
            notes.append(f"{unsettled} of {len(self.records)} rounds were not stable after the longest warm-up")
        limits = sorted({limit for record in self.records for limit in throttled(record)})
        if limits:
            count = sum(bool(throttled(record)) for record in self.records)
            notes.append(f"{count} of {len(self.records)} rounds ran while the device slowed down: {', '.join(limits)}")
        return [*notes, *self.measurement.conditions.get("notes", ())]

    def _conditions(self) -> dict[str, Any]:
        """The state before, with what the session itself chose and what changed by its end."""
        before = dict(self.measurement.conditions.get("before", {}))
        after = self.measurement.conditions.get("after", {})
        changed = {key: value for key, value in after.items() if key != "loadavg" and value != before.get(key)}
        return {
            **{key: value for key, value in before.items() if key != "loadavg"},
            "loadavg_before": before.get("loadavg"),
            "loadavg_after": after.get("loadavg"),
            "changed_during": changed,
            "threads": sorted({record["threads"] for record in self.records}),
            "runtimes": {record["runtime"]: record["runtime_version"] for record in self.records},
            **{
                key: value
                for key, value in self.measurement.conditions.items()
                if key not in ("before", "after", "notes")
            },
            "plan": asdict(self.plan),
            "order": self._order(),
            "percentiles": "nearest rank, over all samples",
            "batch": sorted({record["job"]["input"]["shape"][0] for record in self.records}),
            "fake": self.fake,
        }

    def _order(self) -> str:
        if self.plan.turn:
            return f"in turns of {self.plan.turn}"
        return "A B B A" if self.against is not None else "forward, backward"

    def _result(self, name: str) -> dict[str, Any]:
        """One bundle over all its rounds."""
        rounds = [found for found in self.measurement.rounds if found.bundle == name]
        records = [
            record for found, record in zip(self.measurement.rounds, self.records, strict=True) if found.bundle == name
        ]
        medians = [median(found.samples_ms) for found in rounds]
        pooled = [value for found in rounds for value in found.samples_ms]
        return {
            "bundle": name,
            "median_ms": median(medians),
            "p90_ms": stats.tail(pooled, 90),
            "p99_ms": stats.tail(pooled, 99),
            "ci95_ms": list(stats.round_ci(medians, self.plan.seed)),
            "rounds": len(rounds),
            "samples": len(pooled),
            "peak_memory_bytes": _max(found.peak_memory_bytes for found in rounds),
            "baseline_memory_bytes": _max(record.get("baseline_memory_bytes") for record in records),
            "min_ms": min(pooled),
            "max_ms": max(pooled),
            "mad_ms": median(stats.mad(found.samples_ms) for found in rounds),
            "outliers": sum(stats.outliers(found.samples_ms) for found in rounds),
            "round_medians_ms": medians,
            "load_ms": median(found.load_ms for found in rounds),
            "first_ms": _median(found.first_ms for found in rounds),
            "warmup": {
                "seconds": median(record["warmup"]["seconds"] for record in records),
                "unstable_rounds": sum(not record["warmup"]["stable"] for record in records),
            },
            "threads": records[0]["threads"],
            "runtime": records[0]["runtime"],
            "runtime_version": records[0]["runtime_version"],
            "applied": records[0].get("applied", {}),
            **sensed(records),
            "fake": any(record["fake"] for record in records),
        }


def _parts(samples_ms: Sequence[float], turn: int) -> list[float]:
    """A round's median; in turns, those of its turns."""
    step = turn or len(samples_ms)
    return [median(samples_ms[start : start + step]) for start in range(0, len(samples_ms), step)]


def _max(values: Iterable[int | None]) -> int | None:
    """The largest known value."""
    return max((value for value in values if value is not None), default=None)


def _median(values: Iterable[float | None]) -> float | None:
    """Of the known values."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    """NaN (a load average that nobody could read) as null: JSON has no NaN."""
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in found.items()}


def record(profile: Profile, folder: Path) -> Path:
    """Write `profile.json` (the summary, and the raw record under "raw") into `folder`: whole or not at all.

    Raises:
        MeasureError: the folder cannot be written.
    """
    path = Path(folder) / "profile.json"
    text = json.dumps({**profile.to_json(), "raw": profile.raw()}, indent=1, allow_nan=False)
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, part = tempfile.mkstemp(prefix=".profile-", suffix=".part", dir=path.parent)
        with open(number, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(part, 0o644)  # mkstemp's own mode would hide the record from everyone else
        os.replace(part, path)
    except OSError as error:
        raise MeasureError(f"{path} cannot be written ({error.strerror}): choose another folder") from error
    finally:
        if part is not None:
            with suppress(FileNotFoundError):
                os.unlink(part)
    return path

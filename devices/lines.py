"""A round as one JSON line: what was measured, on what, in which state, with every sample."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from edgevit.devices import stats
from edgevit.devices.conditions import UNKNOWN
from edgevit.devices.result import Profile, Side
from edgevit.devices.sensed import sensed, throttled
from edgevit.stages import Round

SCHEMA = 1


def lines(profile: Profile, session: str, time: str, engines: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rounds in the order they were measured.

    engines: bundle → what its manifest says of the engine (`edgevit.measure.about`); time: UTC, ISO 8601.
    """
    measured = profile.measurement
    shared = {
        "schema": SCHEMA,
        "session": session,
        "time": time,
        "device": dict(measured.device),
        "clocks": _clocks(measured.conditions),
        "conditions": dict(measured.conditions),
    }
    rows = zip(profile.sides, measured.rounds, profile.records, strict=True)
    made = [
        {**shared, "round": number, **_line(side, found, record, engines.get(found.bundle, {}))}
        for number, (side, found, record) in enumerate(rows)
    ]
    return [{**line, "unverified": unverified(line)} for line in made]


def unverified(line: Mapping[str, Any]) -> list[str]:
    """What must be known of a number before it is called a latency, and is not: of device, clocks, placement."""
    known = {
        "device": line["device"].get("cpu") not in (None, UNKNOWN),
        "clocks": line["clocks"]["mhz"] is not None or line["clocks"]["governor"] is not None,
        "placement": line["placement"] is not None,
    }
    return [name for name, fine in known.items() if not fine]


def _line(side: Side, found: Round, record: Mapping[str, Any], engine: Mapping[str, Any]) -> dict[str, Any]:
    """What belongs to one round alone. Raw samples in milliseconds, in order."""
    job, samples = record["job"], list(found.samples_ms)
    seen = sensed([record])
    return {
        "bundle": found.bundle,
        **side._asdict(),
        "fake": record["fake"],
        "engine": {"path": job["engine"], **engine},
        "runtime": {"runner": record["runner"], "name": record["runtime"], "version": record["runtime_version"]},
        "input": job["input"],
        "options": job["options"],
        "applied": record.get("applied", {}),
        "threads": record["threads"],
        "placement": _placement(record),
        "warmup": record["warmup"],
        "load_ms": found.load_ms,
        "first_ms": found.first_ms,
        "samples": len(samples),
        "median_ms": median(samples),
        "p90_ms": stats.tail(samples, 90),
        "p99_ms": stats.tail(samples, 99),
        "energy_mj": seen.get("energy_mj"),
        "temp_c_max": seen.get("temp_c_max"),
        "throttled": sorted(throttled(record)),
        "sensors": record.get("sensors", {}),
        "peak_memory_bytes": found.peak_memory_bytes,
        "baseline_memory_bytes": record.get("baseline_memory_bytes"),
        "loadavg": None if found.loadavg != found.loadavg else found.loadavg,
        "status": 0,  # a round that failed ends its session: there is no line of it
        "samples_ms": samples,
    }


def _placement(record: Mapping[str, Any]) -> Any:
    """On which of the device's units it ran, in its runtime's words; None: the runtime does not say."""
    applied = record.get("applied", {})
    said = (record.get("placement"), applied.get("providers"), applied.get("reported", {}).get("EXECUTION_DEVICES"))
    return next((value for value in said if value), None)


def _clocks(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The governor and each core's lowest, highest and current MHz before the first round; null: nobody can read it.

    locked: all three are equal. power_mode: a Jetson's, where it was held.
    """
    before = conditions.get("before", {})
    mhz = before.get("frequencies_mhz")
    mhz = None if mhz in (None, UNKNOWN) else mhz
    governor = before.get("governor")
    held = conditions.get("held", {})
    return {
        "governor": None if governor == UNKNOWN else governor,
        "mhz": mhz,
        "locked": None if not mhz or len(mhz) < 3 else mhz["min"] == mhz["max"] == mhz["cur"],
        "held": {name: state.get("held") for name, state in held.items()},
        "power_mode": held.get("nvpmodel", {}).get("wish"),
    }

"""Blocks of apps.py → what the wrapper costs, and a table of it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

LIMIT = 0.03


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One app's blocks as figures; costs are fractions with 95 % intervals, times milliseconds.

    under_3_percent: what the interval of `inside` says; None while it holds 3 %.
    """
    from edgevit.devices.stats import Block, round_ci, speedup

    profiled = [one for row in rows for one in row["profile"]]
    own = [one for row in rows for one in row["app"]]
    found = speedup(
        [Block(tuple(a["median_ms"] for a in row["profile"]), tuple(b["app_ms"] for b in row["app"])) for row in rows]
    )
    across = [None if edge is None else 1 / edge - 1 for edge in reversed(found.ci95)]
    ratios = [one["inside"] for one in own]
    inside = [None if edge is None else edge - 1 for edge in round_ci(ratios)]
    cold = [row["cold"] for row in rows if row["cold"]]
    visits = [one for one in own if "cold_ms" in one]
    memory = cold or visits
    return {
        "rounds": len(own),
        "profile_ms": median(one["median_ms"] for one in profiled),
        "app_ms": median(one["app_ms"] for one in own),
        "bare_ms": median(one["bare_ms"] for one in own),
        "image_ms": median(one["image_ms"] for one in own),
        "across": {"cost": 1 / found.ratio - 1, "ci95": across, "noise_floor": found.noise_floor},
        "inside": {"cost": median(ratios) - 1, "ci95": inside},
        "under_3_percent": _verdict(inside),
        "cold_profile_ms": median(one["profile_ms"] for one in cold) if cold else None,
        "load_and_first_ms": median(one["load_ms"] + one["first_ms"] for one in profiled),
        "cold_ms": median(one["cold_ms"] for one in memory),
        "second_visit_ms": median(one["second_visit_ms"] for one in visits) if visits else None,
        "profile_peak_bytes": max(one["peak_memory_bytes"] for one in profiled),
        "peak_bytes": max(one["peak_memory_bytes"] for one in memory),
        "loadavg": median(one["loadavg"] for one in profiled),
    }


def _verdict(interval: Sequence[float | None]) -> bool | None:
    low, high = interval
    if low is None or high is None or low < LIMIT <= high:
        return None
    return high < LIMIT


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row an app."""
    lines = [
        "| app | engine | profile, ms | app, ms | cost inside the process | cost across processes | image to top-5, ms "
        "| cold start, ms | profile's, ms | peak memory, MB | profile's, MB |",
        "|---|---|--:|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in results.items():
        cold, base = f"{row['cold_ms']:.0f}", f"{row['cold_profile_ms'] or row['load_and_first_ms']:.0f}"
        if row["second_visit_ms"]:
            cold, base = f"{cold}, then {row['second_visit_ms']:.0f}", f"{base} (load and first inference)"
        cells = [
            *(name, f"{row['target']} {row['precision']}", f"{row['profile_ms']:.2f}", f"{row['app_ms']:.2f}"),
            *(_cost(row["inside"]), _cost(row["across"]), f"{row['image_ms']:.2f}", cold, base),
            *(f"{row['peak_bytes'] / 1e6:.0f}", f"{row['profile_peak_bytes'] / 1e6:.0f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    said = {True: "yes", False: "no", None: "open, more rounds"}
    verdict = ", ".join(f"{name} {said[row['under_3_percent']]}" for name, row in results.items())
    return "\n".join([*lines, "", f"The wrapper costs under 3 %: {verdict}.", ""])


def _cost(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    interval = "–" if low is None else f"{low:+.1%} to {high:+.1%}"
    return f"{found['cost']:+.1%} ({interval})"

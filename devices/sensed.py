"""What collectors saw, over all rounds of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from edgevit.devices.collect import COLLECTORS


def sensed(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Energy of one inference (millijoules, with and without what the idle device draws) and heat, where known.

    Energy is the median over rounds, of the first collector that gave it in every round; `source` names it.
    """
    found: dict[str, Any] = {}
    for name in COLLECTORS:
        energies = [_seen(record, name).get("energy_j_per_inference") for record in records]
        known = [energy for energy in energies if energy is not None]
        if known and len(known) == len(records):
            nets = [energy["net"] for energy in known if energy["net"] is not None]
            found["energy_mj"] = {
                "gross": 1e3 * median(energy["gross"] for energy in known),
                "net": 1e3 * median(nets) if len(nets) == len(known) else None,
                "source": name,
            }
            break
    hottest = [_seen(record, name)["temp_c"]["max"] for record in records for name in _names(record, "temp_c")]
    if hottest:
        found["temp_c_max"] = max(hottest)
    if any(_names(record, "throttled") for record in records):
        found["throttled_rounds"] = sum(bool(throttled(record)) for record in records)
    return found


def throttled(record: Mapping[str, Any]) -> set[str]:
    """The limits that held during a round."""
    return {limit for name in _names(record, "throttled") for limit in _seen(record, name)["throttled"]}


def _seen(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    seen: Mapping[str, Any] = record.get("sensors", {}).get(name, {})
    return seen


def _names(record: Mapping[str, Any], key: str) -> list[str]:
    return [name for name in record.get("sensors", {}) if key in _seen(record, name)]

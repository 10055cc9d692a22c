"""Collector `thermal`: what any Linux shows of heat and clocks: thermal zones, cooling devices at work, CPU clocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from edgevit.devices.conditions import read_number, read_text

INTERVAL_S = 0.5
SLOWING = ("cpufreq", "devfreq", "processor", "gpu", "cpu")
"""Beginnings of the types of cooling devices that lower a clock; fans do not count."""


def read(root: Path = Path("/")) -> Optional[dict[str, Any]]:  # noqa: UP045 (read by Python 3.9 on devices)
    """Temperatures, clocks and limits now, as a sample without `t`; None where nothing is shown."""
    thermal = root / "sys/class/thermal"
    temperatures: dict[str, float] = {}
    for zone in sorted(thermal.glob("thermal_zone*")):
        value = read_number(zone / "temp")
        if value is not None and value > -200_000:  # -256 degrees: the part is switched off
            temperatures[read_text(zone / "type") or zone.name] = value / 1e3
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    clocks = [read_number(path) for path in files]
    known = [value for value in clocks if value is not None]
    throttled = []
    for device in sorted(thermal.glob("cooling_device*")):
        kind = read_text(device / "type") or ""
        if kind.lower().startswith(SLOWING) and read_number(device / "cur_state"):
            throttled.append(f"{kind} {device.name[14:]}")
    if not (temperatures or known):
        return None
    found: dict[str, Any] = {"temp_c": temperatures, "throttled": throttled}
    if known:
        found["clock_mhz"] = {"cpu": max(known) / 1e3, "cpu_lowest": min(known) / 1e3}
    return found

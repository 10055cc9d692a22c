"""Collector `ina`: the power monitors of Jetson boards in sysfs, INA3221 (rails) and INA238 (the whole board).

Millivolts and milliamperes of each channel; its label is the rail. A channel's critical alarm is an over-current limit
that slows the board down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from edgevit.devices.collect_tegrastats import total_w
from edgevit.devices.conditions import read_number, read_text

INTERVAL_S = 0.05  # the monitor averages over some ten milliseconds
DRIVERS = ("ina3221", "ina238", "ina2xx")
SKIPPED = ("NC", "sum of shunt voltages")


def read(root: Path = Path("/")) -> Optional[dict[str, Any]]:  # noqa: UP045 (read by Python 3.9 on devices)
    """Every rail now, as a sample without `t`; None where there is no such monitor."""
    power: dict[str, float] = {}
    throttled: list[str] = []
    for folder in folders(root):
        for label in sorted(folder.glob("in*_label")):
            number, rail = label.name[2:-6], read_text(label) or ""
            millivolts = read_number(folder / f"in{number}_input")
            milliamperes = read_number(folder / f"curr{number}_input")
            if not rail or rail in SKIPPED or millivolts is None or milliamperes is None:
                continue
            power[rail] = millivolts * milliamperes / 1e6
            if read_number(folder / f"curr{number}_crit_alarm"):
                throttled.append(f"over-current {rail}")
        microwatts = read_number(folder / "power1_input")
        if microwatts is not None:
            power["VIN"] = microwatts / 1e6
    return {"power_w": power, "total_w": total_w(power), "throttled": throttled} if power else None


def folders(root: Path) -> list[Path]:
    """The hwmon folder of every monitor."""
    drivers = root / "sys/bus/i2c/drivers"
    return sorted(path for name in DRIVERS for path in drivers.glob(f"{name}/*/hwmon/hwmon*"))

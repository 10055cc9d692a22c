"""Collector `tegrastats` (Jetson): lines of every generation, from TX2 to Thor, as root or not.

Items in any order: `RAM used/totalMB`, `CPU [load%@mhz,off,...]`, `EMC_FREQ load%@mhz`, `GR3D_FREQ load%@[mhz,...]`
(the clocks as root only; Thor shows no load), `sensor@C` or `sensor@C/maxC`, and rails as `now/mean` without a unit,
`nowmW/meanmW` or `nowmW/meanmW/maxmW`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional

INTERVAL_S = 0.1
PROGRAM = "tegrastats"

_RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")
_CPU = re.compile(r"\bCPU \[([^][]*)\]")
_CORE = re.compile(r"(\d+)%@(\d+)")
_CLOCK = re.compile(r"\b(EMC|GR3D)_FREQ (?:\d+%)?@\[?([\d,]+)\]?")
_SENSOR = re.compile(r"([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C(?![\w.])")
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW/\d+mW(?:/\d+mW)?|/\d+)(?![\w/.%])")

WHOLE = ("VIN", "VDD_IN")
"""Rails through which everything flows; on boards without one, the sum of the rails comes close to the module."""
OFFLINE_C = -256.0
"""What a sensor of a part that is switched off reads."""


def command() -> list[str]:
    """The program, which prints a line every so often until it is ended."""
    return [PROGRAM, "--interval", f"{INTERVAL_S * 1000:.0f}"]


def parse(text: bytes) -> Optional[dict[str, Any]]:  # noqa: UP045 (read by Python 3.9 on devices)
    """One line as a sample (`edgevit.devices.sensors.Sample`, without `t`); None for anything else.

    >>> parse(b"RAM 1/2MB (lfb 1x4MB) CPU [5%@729,off] gpu@48C/49C VDD_IN 4093mW/4463mW/4832mW")["total_w"]
    4.093
    """
    line = text.decode("utf-8", "replace")
    ram, cpu = _RAM.search(line), _CPU.search(line)
    if not (ram and cpu):
        return None
    cores = [int(clock) for _, clock in _CORE.findall(cpu[1])]
    clocks: dict[str, float] = {"cpu": float(max(cores))} if cores else {}
    for unit, values in _CLOCK.findall(line):
        numbers = [int(value) for value in values.split(",") if value]
        if numbers:
            clocks[unit.lower()] = float(max(numbers))
    temperatures = {name.lower(): float(value) for name, value in _SENSOR.findall(line)}
    # PMIC reads 100 whatever happens.
    temperatures = {name: value for name, value in temperatures.items() if value != OFFLINE_C and name != "pmic"}
    power = {rail: int(value) / 1000 for rail, value in _RAIL.findall(line) if rail not in ("NC", "RAM", "SWAP")}
    return {
        "power_w": power,
        "total_w": total_w(power),
        "temp_c": temperatures,
        "clock_mhz": clocks,
        "ram_bytes": int(ram[1]) * 2**20,
    }


def total_w(power: Mapping[str, float]) -> Optional[float]:  # noqa: UP045
    """Watts of the whole: the rail through which everything flows, else the sum; None without any."""
    return next((power[rail] for rail in WHOLE if rail in power), sum(power.values()) if power else None)

"""Guard `jetson_clocks` (Jetson): CPU, GPU and memory at their highest clock of the power mode. A restart undoes it."""

from __future__ import annotations

import re
from typing import Any

from edgevit.devices.guard_system import System
from edgevit.errors import MeasureError

PROGRAM = "jetson_clocks"

_UNIT = re.compile(r"^(cpu\d+|GPU|gpu-\S+|EMC):? .*?MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)(.*)$", re.MULTILINE)
_OVERRIDE = re.compile(r"FreqOverride=(\d)")


def parse_show(text: str) -> dict[str, list[int]]:
    r"""Unit → [lowest, highest, current] in hertz (CPU in kilohertz), and for EMC whether it is overridden.

    >>> parse_show("GPU MinFreq=3 MaxFreq=6 CurrentFreq=3\nEMC MinFreq=2 MaxFreq=9 CurrentFreq=9 FreqOverride=1")
    {'GPU': [3, 6, 3], 'EMC': [2, 9, 9, 1]}
    """
    found: dict[str, list[int]] = {}
    for unit, low, high, now, rest in _UNIT.findall(text):
        override = _OVERRIDE.search(rest)
        found[unit] = [int(low), int(high), int(now), *([int(override[1])] if override else [])]
    if not found:
        raise MeasureError(f"jetson_clocks --show says {text.strip()[:80]!r}, which names no clock")
    return found


def read(system: System) -> dict[str, Any]:
    """The clocks now; only root is told."""
    return parse_show(system.run([PROGRAM, "--show"], root=True))


def hold(wish: str, before: dict[str, Any], system: System) -> None:
    """Store what is there, then the highest clocks."""
    system.run([PROGRAM, "--store", system.keep(PROGRAM)], root=True)
    system.run([PROGRAM], root=True)


def differs(wish: str, now: dict[str, Any]) -> str:
    """What is not locked, or "": lowest, highest and current clock are equal, the memory's is overridden."""
    free = [unit for unit, clock in now.items() if unit != "EMC" and len(set(clock[:3])) > 1]
    if "EMC" in now and now["EMC"][3:] != [1]:
        free.append("EMC")
    return f"not locked: {', '.join(free)}" if free else ""


def restore(before: dict[str, Any], system: System) -> None:
    """Restore what was stored."""
    system.run([PROGRAM, "--restore", system.keep(PROGRAM)], root=True)


def changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What is not as it was found, or "": the limits count, the current clock moves by itself."""
    other = [
        unit for unit, clock in before.items() if now.get(unit, [])[:2] != clock[:2] or _held(now[unit]) != _held(clock)
    ]
    return f"other limits: {', '.join(other)}" if other else ""


def _held(clock: list[int]) -> bool:
    return clock[3:] == [1]

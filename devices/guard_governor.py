"""Guard `governor` (Linux): the CPU's frequency governor, every core's."""

from __future__ import annotations

from typing import Any

from edgevit.devices.guard_system import System
from edgevit.errors import MeasureError

PROGRAM = ""
FILES = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"


def read(system: System) -> dict[str, Any]:
    """File → governor. Raises MeasureError where the kernel shows none."""
    found = {name: system.text(name).strip() for name in system.names(FILES)}
    if not found:
        raise MeasureError("this machine shows no CPU governor, so none can be set")
    return found


def hold(wish: str, before: dict[str, Any], system: System) -> None:
    """Set it for every core that has another."""
    for name, governor in before.items():
        if governor != wish:
            system.write(name, wish)


def differs(wish: str, now: dict[str, Any]) -> str:
    """What is not as wished, or ""."""
    others = sorted(set(now.values()) - {wish})
    return f"there are cores with {', '.join(others)}" if others else ""


def restore(before: dict[str, Any], system: System) -> None:
    """Set every core's own again."""
    for name, governor in before.items():
        if system.text(name).strip() != governor:
            system.write(name, governor)


def changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What is not as it was found, or ""."""
    others = [name.split("/")[4] for name, governor in before.items() if now.get(name) != governor]
    return f"other governors: {', '.join(others)}" if others else ""

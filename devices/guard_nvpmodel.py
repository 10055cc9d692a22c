"""Guard `nvpmodel` (Jetson): the power mode, by name. The numbers mean other modes on other boards and releases.

A mode outlives a restart of the board; one that would need a restart is refused and undone.
"""

from __future__ import annotations

import re
from typing import Any

from edgevit.devices.guard_system import System
from edgevit.errors import MeasureError

PROGRAM = "nvpmodel"
CONFIG = "etc/nvpmodel.conf"

_MODE = re.compile(r"NV Power Mode:\s*(\S+)\s+(\d+)\b")
_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")


def parse_mode(text: str) -> dict[str, Any]:
    r"""The answer to `nvpmodel -q`.

    >>> parse_mode("NV Power Mode: MAXN_SUPER\n2\n")
    {'name': 'MAXN_SUPER', 'id': 2}
    """
    found = _MODE.search(text)
    if found is None:
        raise MeasureError(f"nvpmodel -q says {text.strip()[:80]!r}, which names no power mode")
    return {"name": found[1], "id": int(found[2])}


def parse_modes(text: str) -> dict[str, int]:
    r"""Name → number, from nvpmodel.conf.

    >>> parse_modes("< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN >")
    {'15W': 0, 'MAXN': 2}
    """
    return {name: int(number) for number, name in _MODEL.findall(text)}


def read(system: System) -> dict[str, Any]:
    """The mode now; anyone may ask."""
    return parse_mode(system.run([PROGRAM, "-q"]))


def hold(wish: str, before: dict[str, Any], system: System) -> None:
    """Set the mode of that name. Raises MeasureError: there is none, or it needs a restart."""
    modes = parse_modes(system.text(CONFIG))
    if wish not in modes:
        raise MeasureError(f"this board has no power mode {wish!r}; it has {', '.join(modes) or 'none'} (/{CONFIG})")
    if wish != before["name"]:
        _set(modes[wish], system)


def differs(wish: str, now: dict[str, Any]) -> str:
    """What is not as wished, or ""."""
    return "" if now["name"] == wish else f"the power mode is {now['name']}"


def restore(before: dict[str, Any], system: System) -> None:
    """Set the mode that was found."""
    if read(system)["id"] != before["id"]:
        _set(before["id"], system)


def changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What is not as it was found, or ""."""
    return "" if now == before else f"the power mode is {now['name']}, not {before['name']}"


def _set(number: int, system: System) -> None:
    said = system.run([PROGRAM, "-m", str(number)], stdin="NO\n", root=True)
    if "reboot" in said.lower():
        raise MeasureError("nvpmodel wants to restart the board for that mode: set it by hand and restart")

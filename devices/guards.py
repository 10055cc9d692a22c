"""Guards: clocks and power modes, recorded, set, verified by reading back, and restored however the session ends.

One file a guard, one line in GUARDS. Restoring is the work of a keeper, a process of its own that waits for the end of
a pipe: the session closes it, and so does its death. What was found stands in a journal before anything is set; one
that outlived its keeper (a power cut) is worked off by the next session. Standard library alone, Python 3.9 or later.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from edgevit.devices.guard_system import System
from edgevit.errors import MeasureError

GUARDS = {
    "nvpmodel": "edgevit.devices.guard_nvpmodel",
    "jetson_clocks": "edgevit.devices.guard_jetson_clocks",
    "governor": "edgevit.devices.guard_governor",
}
"""Name → module, in the order they are set; restored the other way round."""

JOURNAL = "guards.json"


def hold(wishes: Mapping[str, str], system: System) -> dict[str, Any]:
    """Set what is wished; guard → what was found and what is now. Raises MeasureError; `restore` undoes what began."""
    found: dict[str, Any] = {}
    for name in GUARDS:
        if name not in wishes:
            continue
        guard = import_module(GUARDS[name])
        if not system.has(guard.PROGRAM):
            raise MeasureError(f"{name} cannot be held: there is no {guard.PROGRAM} on this machine")
        before = guard.read(system)
        found[name] = {"before": before}
        _write(system, {key: value["before"] for key, value in found.items()})
        guard.hold(wishes[name], before, system)
        now = guard.read(system)
        if text := guard.differs(wishes[name], now):
            raise MeasureError(f"{name} was set to {wishes[name]}, yet {text}")
        found[name] |= {"wish": wishes[name], "held": now}
    return found


def restore(system: System) -> dict[str, str]:
    """Work off the journal; guard → "" when it is as it was found, else what is not. No journal: nothing was set."""
    path = system.folder / JOURNAL
    if not path.exists():
        return {}
    found: dict[str, str] = {}
    for name, before in reversed(json.loads(path.read_text("utf-8")).items()):
        guard = import_module(GUARDS[name])
        try:
            guard.restore(before, system)
            found[name] = guard.changed(before, guard.read(system))
        except MeasureError as error:
            found[name] = str(error)
    if not any(found.values()):  # else the next session tries again
        path.unlink()
        for stored in system.folder.glob("*.stored"):
            stored.unlink()
    return found


def _write(system: System, journal: Mapping[str, Any]) -> None:
    """The journal, on the disk before anything is set."""
    part = system.folder / f"{JOURNAL}.part"
    with open(part, "w", encoding="utf-8") as stream:
        json.dump(journal, stream)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(system.folder / JOURNAL)


class Keeper:
    """The process that restores. folder: of the journal. lock: held until everything is as it was found."""

    def __init__(self, folder: Path, lock: int) -> None:
        tree = str(Path(__file__).resolve().parents[2])
        start = (
            "import sys; sys.path[:] = [sys.argv[1], *filter(None, sys.path)]; "
            "from edgevit.devices.guards import keep; sys.exit(keep(sys.argv[2]))"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, tree, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(lock,),
        )
        if self._process.stdout.readline() != b"ready\n":  # type: ignore[union-attr]
            raise MeasureError("the process that restores clocks did not start; nothing was set")

    def release(self) -> dict[str, str]:
        """Restore now; see `restore`. Raises MeasureError where that could not be seen through."""
        text, _ = self._process.communicate()
        try:
            found: dict[str, str] = json.loads(text)
        except ValueError as error:
            raise MeasureError("the process that restores clocks died; the next session restores them first") from error
        return found


def keep(folder: str) -> int:
    """Wait until the session is over, however it ends, then restore."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    found = restore(System(Path(folder)))
    with suppress(BrokenPipeError):  # nobody is left to read it
        sys.stdout.write(json.dumps(found))
        sys.stdout.flush()
    os._exit(0)

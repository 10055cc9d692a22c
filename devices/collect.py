"""Collectors beside the rounds: a process of their own that writes what they see, line by line, with the time.

One file a collector, one line in COLLECTORS. A collector is a module with `INTERVAL_S` and either `read(root)`, a look
as a sample, or `command()` and `parse(bytes)`, a program that prints samples until it is ended (each ends with `END`,
else with a line). `PROGRAM`: what it needs on the PATH. `ROOT`: it needs root. Standard library alone, Python 3.9 or
later: sessions on other devices are sent this file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Optional

from edgevit.devices.sensors import Sample, window

COLLECTORS = {
    "ina": "edgevit.devices.collect_ina",
    "tegrastats": "edgevit.devices.collect_tegrastats",
    "rapl": "edgevit.devices.collect_rapl",
    "vcgencmd": "edgevit.devices.collect_vcgencmd",
    "powermetrics": "edgevit.devices.collect_powermetrics",
    "thermal": "edgevit.devices.collect_thermal",
}
"""Name → module; where several measure power, the first counts."""

FAKE = b"edgevit: fake"
"""What a stand-in for a program has in its first lines: nothing that it says is a measurement."""


def usable() -> dict[str, str]:
    """Collector → "" where it can be used on this machine, else why not."""
    return {name: _lacks(import_module(path)) for name, path in COLLECTORS.items()}


def _lacks(module: Any) -> str:
    program = getattr(module, "PROGRAM", "")
    if program and shutil.which(program) is None:
        return f"no {program}"
    if getattr(module, "ROOT", False) and os.geteuid() != 0:
        return "needs root"
    return "" if hasattr(module, "command") or module.read() else "nothing to read"


def is_fake(program: str) -> bool:
    """Whether a program of the PATH says of itself that it is a stand-in."""
    place = shutil.which(program)
    try:
        return place is not None and FAKE in Path(place).read_bytes()[:400]
    except OSError:
        return False


def fakes(names: Sequence[str]) -> list[str]:
    """Those of the collectors whose program is a stand-in."""
    programs = {name: getattr(import_module(COLLECTORS[name]), "PROGRAM", "") for name in names}
    return [name for name, program in programs.items() if program and is_fake(program)]


def looks(module: Any) -> Iterator[Sample]:
    """A collector's samples, for ever, each with the time it came."""
    if hasattr(module, "command"):
        program = subprocess.Popen(module.command(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for piece in pieces(program.stdout, getattr(module, "END", b"\n")):  # type: ignore[arg-type]
            sample = module.parse(piece)
            if sample:
                yield {"t": time.monotonic(), **sample}
        return
    due = time.monotonic()
    while True:
        before = time.monotonic()
        sample = module.read()
        if sample:
            yield {"t": (before + time.monotonic()) / 2, **sample}
        due = max(due + module.INTERVAL_S, time.monotonic())
        time.sleep(due - time.monotonic() if due > time.monotonic() else 0)


def pieces(stream: IO[bytes], end: bytes) -> Iterator[bytes]:
    """What a program prints, cut behind each `end`."""
    held = b""
    for line in stream:
        held += line
        if held.endswith(end):
            yield held
            held = b""


def main(argv: list[str]) -> int:
    """`FILE NAME...`: append the samples of these collectors to the file, until ended."""
    lock = threading.Lock()
    with open(argv[0], "a", encoding="utf-8", buffering=1) as out:

        def follow(name: str) -> None:
            for sample in looks(import_module(COLLECTORS[name])):
                with lock:
                    out.write(json.dumps({"collector": name, **sample}) + "\n")

        threads = [threading.Thread(target=follow, args=(name,), daemon=True) for name in argv[1:]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return 0


class Sampler:
    """The process of the collectors, and what it wrote. folder: for its file. tree: where this package lies."""

    def __init__(self, folder: Path, names: Sequence[str], tree: Path) -> None:
        self.file = folder / "samples.ndjson"
        self.idle_w: dict[str, Optional[float]] = {}  # noqa: UP045
        start = (
            "import sys; sys.path[:] = [sys.argv[1], *filter(None, sys.path)]; "
            "from edgevit.devices.collect import main; sys.exit(main(sys.argv[2:]))"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, str(tree), str(self.file), *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # its programs end with it
        )

    def samples(self) -> dict[str, list[Sample]]:
        """Everything so far, by collector."""
        found: dict[str, list[Sample]] = {}
        text = self.file.read_text("utf-8") if self.file.exists() else ""
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):  # the last one may be half written
                sample = json.loads(line)
                found.setdefault(sample.pop("collector"), []).append(sample)
        return found

    def window(self, bounds: Sequence[float], inferences: int) -> dict[str, Sample]:
        """What each collector says about a window from start to end, see `edgevit.devices.sensors.window`."""
        return {
            name: window(samples, bounds[0], bounds[1], inferences, self.idle_w.get(name))
            for name, samples in self.samples().items()
        }

    def stop(self) -> None:
        """End the process and its programs."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

"""The session on a device: one JSON request a line in, one JSON answer a line out.

It holds the device's lock, starts each round in a fresh process, and watches the link: when the input ends, or nothing
was heard for `SILENCE_S`, the round is killed, the device is left as it was found, and the lock is given back. An empty
line only says that the other side is there. Standard library alone, Python 3.9 or later.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from edgevit.devices import conditions, guards
from edgevit.devices.collect import Sampler, fakes, is_fake, usable
from edgevit.devices.guard_system import System
from edgevit.devices.lock import session_lock
from edgevit.devices.probe import probe
from edgevit.devices.rounds import run_round
from edgevit.devices.sensors import mean_w
from edgevit.errors import MeasureError

SILENCE_S = 60.0
"""So long may nothing be heard; the other side speaks every `edgevit.devices.remote.BEAT_S`."""

SETTLE_S, AFTER_S = 1.0, 0.3


class LinkLost(Exception):
    """The other side is gone: it closed the input, or went silent."""


class Link:
    """Lines from a file descriptor, with the time of the last one."""

    def __init__(self, source: int, silence_s: float = SILENCE_S) -> None:
        self.source = source
        self.silence_s = silence_s
        self.buffer = b""
        self.heard = time.monotonic()

    def listen(self, others: list[int], limit_s: float = float("inf")) -> list[int]:
        """Wait for input, for one of the others to have some, or for `limit_s`; the others that have. LinkLost."""
        left = self.heard + self.silence_s - time.monotonic()
        ready, _, _ = select.select([self.source, *others], [], [], max(0.0, min(left, limit_s)))
        if self.source in ready:
            piece = os.read(self.source, 1 << 16)
            if not piece:
                raise LinkLost("the input ended")
            self.buffer += piece
            self.heard = time.monotonic()
        elif self.heard + self.silence_s <= time.monotonic():
            raise LinkLost(f"nothing was heard for {self.silence_s:g} s")
        return [number for number in ready if number != self.source]

    def pause(self, seconds: float) -> None:
        """Do nothing for so long. Raises LinkLost."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.listen([], left)

    def requests(self) -> Iterator[dict[str, Any]]:
        """The requests, as they come. Raises LinkLost."""
        while True:
            while b"\n" not in self.buffer:
                self.listen([])
            line, _, self.buffer = self.buffer.partition(b"\n")
            if line.strip():
                yield json.loads(line)

    def wait(self, child: subprocess.Popen[bytes], limit_s: float) -> bytes:
        """Its standard error, once the process has ended; nothing is polled while it runs. Raises LinkLost."""
        deadline = time.monotonic() + limit_s
        stream = child.stderr.fileno()  # type: ignore[union-attr]
        pieces: list[bytes] = []
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(child.args, limit_s)
            if stream in self.listen([stream], left):
                piece = os.read(stream, 1 << 16)
                if not piece:
                    child.wait(max(0.1, left))
                    return b"".join(pieces)
                pieces.append(piece)


class Session:
    """What one session holds of the device: its lock, a folder, and on request clocks and collectors."""

    def __init__(self, work: Path, link: Link, stack: ExitStack) -> None:
        self.link = link
        self.stack = stack
        self.engines = work / "engines"
        self.lock = stack.enter_context(session_lock())
        self.folder = Path(stack.enter_context(scratch(work)))
        self.system = System(work / "guards")
        self.system.folder.mkdir(exist_ok=True)
        self.restored_first = guards.restore(self.system)  # of a session that could not
        self.keeper: guards.Keeper | None = None
        self.sampler: Sampler | None = None
        self.fakes: list[str] = []

    def do(self, request: dict[str, Any]) -> Any:
        """One request."""
        name = request.pop("do")
        known: dict[str, Callable[..., Any]] = {
            "state": conditions.state,
            "device": conditions.device,
            "probe": lambda: {**probe(), "collectors": usable()},
            "hold": self.hold,
            "collect": self.collect,
            "idle": self.idle,
            "round": self.round,
            "end": self.end,
        }
        if name not in known:
            raise MeasureError(f"the device was asked for {name!r}, which it does not know; is it another version?")
        return known[name](**request)

    def hold(self, wishes: dict[str, str]) -> dict[str, Any]:
        """Set clocks and power modes until the session is over."""
        if any(self.restored_first.values()):
            raise MeasureError(
                f"what an earlier session set could not be restored: {self.restored_first}; do it by hand"
            )
        if "clocks" in wishes:
            wishes = {
                **wishes,
                **({"jetson_clocks": "on"} if self.system.has("jetson_clocks") else {"governor": "performance"}),
            }
            del wishes["clocks"]
        self.keeper = guards.Keeper(self.system.folder, self.lock)
        self.fakes += [name for name in wishes if is_fake(name)]
        return guards.hold(wishes, self.system)

    def collect(self) -> dict[str, Any]:
        """Start the collectors that this machine has; each one's reason where it has not."""
        why = usable()
        used = [name for name, reason in why.items() if not reason]
        self.fakes += fakes(used)
        if used:
            self.sampler = Sampler(self.folder, used, Path(__file__).resolve().parents[2])
            self.stack.callback(self.sampler.stop)
        return {"used": used, "not": {name: reason for name, reason in why.items() if reason}}

    def idle(self, seconds: float) -> dict[str, float]:
        """Collector → watts of the device while nothing runs; those that measure power."""
        if self.sampler is None:
            return {}
        self.link.pause(SETTLE_S)  # the collectors' own start is over
        if not any(
            "total_w" in look or "energy_j" in look for seen in self.sampler.samples().values() for look in seen
        ):
            return {}
        start = time.monotonic()
        self.link.pause(seconds)
        self.sampler.idle_w = {
            name: mean_w(samples, start, time.monotonic()) for name, samples in self.sampler.samples().items()
        }
        return {name: watts for name, watts in self.sampler.idle_w.items() if watts is not None}

    def round(self, job: dict[str, Any], runner: str, place: str, limit_s: float) -> dict[str, Any]:
        """One round, with what the collectors saw of it."""
        load = conditions.load_average()
        file = Path(__file__).resolve().parents[2] / "runners" / runner
        job["engine"] = str(Path(job["engine"]).resolve())
        if "cache" in job:
            job["cache"] = str(self.engines.resolve())
        found = run_round(job, file, self.folder, place, limit_s, self.lock, self.link.wait)
        if self.sampler is not None and "window_s" in found:
            self.link.pause(AFTER_S)  # the first look after the window belongs to it, too
            found["sensors"] = self.sampler.window(found["window_s"], len(found["samples_ms"]))
        if self.fakes:
            found.update(fake=True, fake_programs=self.fakes)
        return {**found, "loadavg": load}

    def end(self) -> dict[str, Any]:
        """Give back what was held; guard → "" or what is not as it was found."""
        keeper, self.keeper = self.keeper, None
        return {"restored": keeper.release() if keeper else {}, "restored_first": self.restored_first}


def serve(link: Link, answer: Any, work: Path) -> None:
    """Answer requests until `end`. Raises LinkLost, MeasureError for a lock that another holds."""
    with ExitStack() as stack:
        session = Session(work, link, stack)
        answer({"ready": os.getpid()})
        for request in link.requests():
            last = request["do"] == "end"
            try:
                message = {"answer": session.do(request)}
            except MeasureError as error:
                message = {"error": str(error)}
            if last:
                break
            answer(message)
    answer(message)


@contextmanager
def scratch(work: Path) -> Iterator[str]:
    """A folder of this session's own, gone afterwards."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix="session-", dir=work)
    except OSError as error:
        raise MeasureError(f"{work} on the device cannot be written: {error.strerror}") from error
    with made as folder:
        yield folder


def main(argv: list[str]) -> int:
    """Serve standard input; the one word is WORK. Exit: 0 after `end`, 3 the link is lost, 1 it cannot start."""

    def answer(message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    def leave(number: int, _: object) -> None:
        raise LinkLost(f"signal {number}")

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, leave)
    try:
        serve(Link(sys.stdin.fileno()), answer, Path(argv[0]))
    except (LinkLost, BrokenPipeError) as error:
        print(f"edgevit: the session ends: {error}", file=sys.stderr)
        return 3
    except MeasureError as error:
        answer({"error": str(error)})
        return 1
    return 0

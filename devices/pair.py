"""Two rounds at once that take turns: a few inferences of the one while the other waits, there and back.

What others do on a shared machine comes and goes within seconds, and two rounds one after the other take that for a
difference. Here both sides see the same seconds, and still nothing runs beside what is timed. They also have the same
cores, as many as threads: a process stays on its core, and on a shared machine one core may be 40 % slower than the
next for as long as a round.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from edgevit.devices.rounds import ended, start
from edgevit.errors import MeasureError

TURN = b"edgevit: turn\n"
RUNNERS = ("ort", "openvino", "executorch")
"""Those that take turns."""


class Partner(NamedTuple):
    """A runner that is there. folder: for its job and record. place: how messages begin."""

    child: subprocess.Popen[bytes]
    job: Mapping[str, Any]
    folder: Path
    place: str


def run_pair(
    jobs: Sequence[Mapping[str, Any]],
    runners: Sequence[Path],
    folder: Path,
    places: Sequence[str],
    limit_s: float,
    lock: int,
) -> list[dict[str, Any]]:
    """The records of two fresh processes, in the order of the jobs; each job's `turn` is inferences a turn.

    Both sample until the job's `min_samples` and `min_seconds` of turns are reached, or `max_seconds`.
    Raises MeasureError: one failed, or gave no answer within limit_s.
    """
    with ExitStack() as stack:
        sides: list[Partner] = []
        for number, (job, runner, place) in enumerate(zip(jobs, runners, places, strict=True)):
            own = folder / f"side{number}"
            own.mkdir(exist_ok=True)
            with _on_cores_of(job):
                child = stack.enter_context(start(job, runner, own, place, lock, subprocess.PIPE))
            stack.callback(child.kill)
            sides.append(Partner(child, job, own, place))
            _wait(sides[-1], limit_s)  # loaded and warm before the other one begins
        _take_turns(sides, limit_s)
        return [_end(side, limit_s) for side in sides]


@contextmanager
def _on_cores_of(job: Mapping[str, Any]) -> Iterator[None]:
    """A process that is started here has as many cores as threads: both sides the same, the next pair others."""
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []  # on macOS the system chooses
    count = job["options"].get("threads") or 0
    if not 0 < count < len(own):
        yield
        return
    first = job.get("round", 0) // 2 * count
    os.sched_setaffinity(0, {own[(first + i) % len(own)] for i in range(count)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def _take_turns(sides: Sequence[Partner], limit_s: float) -> None:
    """A B, B A, A B, ..., as long as the jobs ask."""
    job = sides[0].job
    spent, count = [0.0] * len(sides), 0
    while (count < job["min_samples"] or min(spent) < job["min_seconds"]) and max(spent) < job["max_seconds"]:
        for number in range(len(sides)) if count // job["turn"] % 2 == 0 else reversed(range(len(sides))):
            began = time.monotonic()
            _say(sides[number], b"go\n")
            _wait(sides[number], limit_s)
            spent[number] += time.monotonic() - began
        count += job["turn"]


def _say(side: Partner, word: bytes) -> None:
    assert side.child.stdin is not None
    try:
        side.child.stdin.write(word)
    except BrokenPipeError:
        _end(side, 1.0)


def _wait(side: Partner, limit_s: float) -> None:
    """Until it asks for a turn; whatever a runtime prints besides is none."""
    stream, end = side.child.stdout, time.monotonic() + limit_s
    assert stream is not None
    while select.select([stream], [], [], max(0.0, end - time.monotonic()))[0]:
        line = stream.readline()
        if line == TURN:
            return
        if not line:
            _end(side, limit_s)
            raise MeasureError(f"{side.place} ended before its turn")
    raise MeasureError(f"{side.place}: no answer after {limit_s:.0f} s, stopped")


def _end(side: Partner, limit_s: float) -> dict[str, Any]:
    """Tell it to end, and read its record."""
    try:
        _, stderr = side.child.communicate(b"end\n", timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"{side.place}: no result after {limit_s:.0f} s, stopped") from error
    return ended(side.job, side.folder, side.place, side.child.returncode, stderr)

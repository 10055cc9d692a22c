"""One round: a runner in a fresh process, here or, sent to a device, there.

Standard library alone, Python 3.9 or later.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgevit.errors import MeasureError

MOST_BYTES = 1 << 26
"""Of a record that is read; a round of 20 s leaves a hundredth of it."""
UNTOLD = ("first_ms", "peak_memory_bytes", "baseline_memory_bytes", "load_memory_bytes")
"""Numbers that some runners cannot tell: absent, or None."""

Wait = Callable[["subprocess.Popen[bytes]", float], bytes]
"""Waits for the end of a process, at most so many seconds (subprocess.TimeoutExpired), and returns its stderr."""


def communicate(child: subprocess.Popen[bytes], limit_s: float) -> bytes:
    """The plain way to wait."""
    return child.communicate(timeout=limit_s)[1]


def run_round(
    job: Mapping[str, Any],
    runner: Path,
    folder: Path,
    place: str,
    limit_s: float,
    lock: int,
    wait: Wait = communicate,
) -> dict[str, Any]:
    """Run one runner to its end and return its record, checked. Whatever ends the wait kills it on the way out.

    Args:
        job: the runner's job, less the place of its record.
        runner: its file.
        folder: for the job and the record.
        place: how messages begin.
        limit_s: seconds it may take.
        lock: the session's lock, which it holds too.
        wait: how to wait for it.

    Raises:
        MeasureError: it failed, took too long, or left no usable record.
    """
    child = start(job, runner, folder, place, lock)
    try:
        stderr = wait(child, limit_s)
    except subprocess.TimeoutExpired as error:
        raise MeasureError(
            f"{place}: no result after {limit_s:.0f} s, stopped; the engine may be too slow for this device"
        ) from error
    finally:
        child.kill()
        child.wait()
        child.stderr.close()  # type: ignore[union-attr]
    return ended(job, folder, place, child.returncode, stderr)


def start(
    job: Mapping[str, Any], runner: Path, folder: Path, place: str, lock: int, pipe: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """A runner's process. pipe: subprocess.PIPE, unbuffered, for one that is talked to. Raises MeasureError."""
    todo, out = folder / "job.json", folder / "record.json"
    if out.exists():
        out.unlink()
    try:
        todo.write_text(json.dumps({**job, "out": str(out)}), "utf-8")
    except TypeError as error:
        raise MeasureError(f"{place}: the options {job['options']} cannot be written as JSON: {error}") from error
    # -P keeps this folder off the child's path. Not -I: it would also drop PYTHONPATH and the user's own
    # site-packages, where a runtime on a board often lives, so the child could miss what this process has.
    command = [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), str(runner), str(todo)]
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.PIPE, pass_fds=(lock,), bufsize=0)
    except OSError as error:
        raise MeasureError(f"{place}: {sys.executable} does not start: {error}") from error


def ended(job: Mapping[str, Any], folder: Path, place: str, status: int, stderr: bytes) -> dict[str, Any]:
    """The record of a runner that has ended, checked. Raises MeasureError."""
    if status:
        said = last_line(stderr) or "it wrote nothing to stderr"
        raise MeasureError(f"{place} failed ({_ending(status)}): {said}")
    try:
        found = read_record(folder / "record.json")
    except (OSError, ValueError) as error:
        raise MeasureError(f"{place} ended without a readable record: {error}") from error
    return checked(found, place, job.get("min_samples") != 0)


def _ending(status: int) -> str:
    """An exit status in words."""
    if status > 0:
        return f"exit status {status}"
    hint = "; out of memory?" if -status == signal.SIGKILL else ""
    try:
        return f"killed by {signal.Signals(-status).name}{hint}"
    except ValueError:
        return f"killed by signal {-status}"


def last_line(text: bytes) -> str:
    """The last line that says something, or ""."""
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def read_record(path: Path) -> dict[str, Any]:
    """A runner's record, which may be anything. Raises OSError, ValueError."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has {path.stat().st_size} bytes, {MOST_BYTES} are the most")
    try:
        found = json.loads(path.read_text("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError(f"it is no object but {type(found).__name__}")
    return found


def checked(found: dict[str, Any], place: str, sampled: bool = True) -> dict[str, Any]:
    """The record, which has what the results need; one that only built has no samples. Raises MeasureError."""
    needed = ["job", "fake", "runtime", "runtime_version", "samples_ms"]
    if sampled:
        needed += ["load_ms", "first_ms", "peak_memory_bytes", "threads", "warmup"]
    missing = [key for key in needed if key not in found]
    if missing:
        raise MeasureError(f"{place}: its record lacks {', '.join(missing)}; use the runner of this version")
    if not sampled:
        return found
    samples = found["samples_ms"]
    if not (isinstance(samples, list) and samples and all(is_number(s) and s > 0 for s in samples)):
        raise MeasureError(f"{place}: its record holds no samples, or samples that are not positive numbers")
    warm = found["warmup"] if isinstance(found["warmup"], dict) else {}
    told = {"load_ms": found["load_ms"], "threads": found["threads"], "warmup.seconds": warm.get("seconds")}
    told.update({key: found[key] for key in UNTOLD if found.get(key) is not None})
    wrong = {key: value for key, value in told.items() if not (is_number(value) and value >= 0)}
    if not isinstance(warm.get("stable"), bool):
        wrong["warmup.stable"] = warm.get("stable")
    if not isinstance(found["runtime_version"], str):
        wrong["runtime_version"] = found["runtime_version"]
    if wrong:
        said = ", ".join(f"{key}={repr(value)[:40]}" for key, value in wrong.items())
        raise MeasureError(f"{place}: its record holds values that are none: {said}; use the runner of this version")
    return found


def is_number(value: object) -> bool:
    """Whether it is a finite number that a float holds."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False

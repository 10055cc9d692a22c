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
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(lock,)
        )
    except OSError as error:
        raise MeasureError(f"{place}: {sys.executable} does not start: {error}") from error
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
    if child.returncode:
        said = last_line(stderr) or "it wrote nothing to stderr"
        raise MeasureError(f"{place} failed ({_ending(child.returncode)}): {said}")
    return checked(_read(out, place), place, job.get("min_samples") != 0)


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


def _read(path: Path, place: str) -> dict[str, Any]:
    """The runner's record."""
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MeasureError(f"{place} ended without a readable record: {error}") from error
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
    numbers = samples and all(isinstance(s, (int, float)) and math.isfinite(s) and s > 0 for s in samples)
    if not numbers:
        raise MeasureError(f"{place}: its record holds no samples, or samples that are not positive numbers")
    return found

"""The interleaved benchmark: one fresh process a round, one at a time, A B B A.

Two runtimes in one process distort each other (worker threads of the first spin while the second is timed),
and a machine drifts over minutes. So each round is its own process, and the rounds of what is compared
alternate, forward and backward: a linear drift then falls on both sides alike.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgevit.devices import conditions
from edgevit.devices.lock import session_lock
from edgevit.devices.plan import RUNNERS, BenchPlan, Job
from edgevit.devices.result import Profile, Side, record
from edgevit.errors import MeasureError
from edgevit.stages import Measurement, Round

__all__ = ["BenchPlan", "Job", "Profile", "once", "order", "profile", "record"]

LOAD_LIMIT_S = 900.0
"""Seconds a runner may need beyond its sampling, mostly to load; a compile on a small board takes minutes."""

Progress = Callable[[str, int, int], None]


class Slot(NamedTuple):
    """One round to come: which engine, and its place in the comparison."""

    job: Job
    side: Side


def order(jobs: Sequence[Job], against: Job | None, rounds: int) -> list[Slot]:
    """The order of the rounds: `rounds` of each job.

    With `against` as A: for each block, for each bundle B: A B B A. Without: all bundles forward, then
    backward.
    """
    slots: list[Slot] = []
    if against is None:
        for number in range(rounds):
            turn = list(jobs) if number % 2 == 0 else list(reversed(jobs))
            slots += [Slot(job, Side(number // 2, "bundle", job.bundle)) for job in turn]
        return slots
    for block in range((rounds + 1) // 2):
        for job in jobs:
            pair = [
                Slot(against, Side(block, "against", job.bundle)),
                Slot(job, Side(block, "bundle", job.bundle)),
            ]
            slots += pair
            if 2 * block + 1 < rounds:
                slots += reversed(pair)
    return slots


def profile(
    jobs: Sequence[Job],
    against: Job | None = None,
    plan: BenchPlan | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measure the jobs on this machine, each round in a fresh process, never two at once.

    Args:
        jobs: what to measure; names must differ.
        against: the other side of every comparison. It may be one of the jobs: that comparison is an A/A run.
        plan: how long and how often.
        progress: called as (bundle, rounds done, rounds in all) before every round and once at the end.

    Raises:
        MeasureError: a runner failed, another session runs on this machine, or the jobs do not make sense.
    """
    plan = plan or BenchPlan()
    _check(jobs, against)
    slots = order(jobs, against, plan.rounds)
    rounds: list[Round] = []
    records: list[Mapping[str, Any]] = []
    with session_lock() as lock, tempfile.TemporaryDirectory(prefix="edgevit-profile-") as folder:
        before = conditions.state()
        for number, slot in enumerate(slots):
            if progress:
                progress(slot.job.bundle, number, len(slots))
            load = conditions.load_average()
            place = f"{slot.job.bundle}: runner {slot.job.runner!r}, round {number + 1} of {len(slots)}"
            found = _run_round(_job_json(slot.job, plan, number), Path(folder), lock, place)
            samples = tuple(found.pop("samples_ms"))
            rounds.append(
                Round(
                    slot.job.bundle,
                    samples,
                    found["load_ms"],
                    found["first_ms"],
                    found["peak_memory_bytes"],
                    math.nan if load is None else load,
                )
            )
            records.append(found)
        after = conditions.state()
    if progress:
        progress(slots[-1].job.bundle, len(slots), len(slots))
    measurement = Measurement(conditions.device(), {"before": before, "after": after}, tuple(rounds))
    return Profile(
        measurement,
        tuple(slot.side for slot in slots),
        tuple(records),
        plan,
        None if against is None else against.bundle,
    )


def once(job: Job) -> dict[str, Any]:
    """The record of one fresh process that loads an engine and runs it twice: what it takes, not how fast it is.

    Raises:
        MeasureError: the runner failed, or another session runs on this machine.
    """
    plan = BenchPlan(rounds=1, warmup_s=0, min_samples=1, min_seconds=0)
    with session_lock() as lock, tempfile.TemporaryDirectory(prefix="edgevit-once-") as folder:
        return _run_round(_job_json(job, plan, 0), Path(folder), lock, f"{job.bundle}: runner {job.runner!r}")


def _check(jobs: Sequence[Job], against: Job | None) -> None:
    """Refuse jobs whose results could not be told apart."""
    if not jobs:
        raise MeasureError("nothing to measure: give at least one bundle")
    names = [job.bundle for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MeasureError(f"given twice: {', '.join(twice)}; give each once (noise: compare one with itself)")
    if against is not None and any(job.bundle == against.bundle and job != against for job in jobs):
        raise MeasureError(f"two different engines are both called {against.bundle!r}: rename one bundle")


def _job_json(job: Job, plan: BenchPlan, number: int) -> dict[str, Any]:
    """The runner's job, less the place of its record."""
    threads = plan.threads or job.options.get("threads") or conditions.usable_cores()
    return {
        "engine": str(Path(job.engine).resolve()),
        "options": {**job.options, "threads": threads},
        "input": {"name": job.input_name, "shape": list(job.input_shape)},
        "seed": plan.seed,
        "round": number,
        "runner": job.runner,
        "warmup_s": plan.warmup_s,
        "min_samples": plan.min_samples,
        "min_seconds": plan.min_seconds,
        "max_seconds": plan.max_seconds,
    }


def _run_round(job: dict[str, Any], folder: Path, lock: int, place: str) -> dict[str, Any]:
    """Run one runner to its end and return its record. An interrupt kills it on the way out."""
    todo, out = folder / "job.json", folder / "record.json"
    out.unlink(missing_ok=True)
    try:
        todo.write_text(json.dumps({**job, "out": str(out)}), "utf-8")
    except TypeError as error:
        raise MeasureError(f"{place}: the options {job['options']} cannot be written as JSON: {error}") from error
    limit_s = LOAD_LIMIT_S + 2 * job["max_seconds"]
    # -P keeps this folder off the child's path. Not -I: it would also drop PYTHONPATH and the user's own
    # site-packages, where a runtime on a board often lives, so the child could miss what this process has.
    command = [sys.executable, "-P", str(RUNNERS[job["runner"]]), str(todo)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=limit_s,
            pass_fds=(lock,),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureError(
            f"{place}: no result after {limit_s:.0f} s, stopped; the engine may be too slow for this device"
        ) from error
    except OSError as error:
        raise MeasureError(f"{place}: {sys.executable} does not start: {error}") from error
    if done.returncode:
        raise MeasureError(f"{place} failed ({_ending(done.returncode)}): {_last_line(done.stderr)}")
    return _read_record(out, place)


def _ending(status: int) -> str:
    """An exit status in words."""
    if status > 0:
        return f"exit status {status}"
    hint = "; out of memory?" if -status == signal.SIGKILL else ""
    try:
        return f"killed by {signal.Signals(-status).name}{hint}"
    except ValueError:
        return f"killed by signal {-status}"


def _last_line(stderr: bytes) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing to stderr"


def _read_record(path: Path, place: str) -> dict[str, Any]:
    """The runner's record, checked for what the results need."""
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MeasureError(f"{place} ended without a readable record: {error}") from error
    needed = ("job", "samples_ms", "load_ms", "first_ms", "peak_memory_bytes", "fake", "threads", "warmup")
    missing = [key for key in (*needed, "runtime", "runtime_version") if key not in found]
    if missing:
        raise MeasureError(f"{place}: its record lacks {', '.join(missing)}; use the runner of this version")
    samples = found["samples_ms"]
    if not samples or not all(isinstance(s, float | int) and math.isfinite(s) and s > 0 for s in samples):
        raise MeasureError(f"{place}: its record holds no samples, or samples that are not positive numbers")
    return found

"""The interleaved benchmark: one fresh process a round, one at a time, A B B A.

Two runtimes in one process distort each other (worker threads of the first spin while the second is timed),
and a machine drifts over minutes. So each round is its own process, and the rounds of what is compared
alternate, forward and backward: a linear drift then falls on both sides alike.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, cast

from edgevit.devices import conditions, pair
from edgevit.devices.config import Device
from edgevit.devices.plan import BUILDERS, BenchPlan, Job, Setup
from edgevit.devices.result import Profile, Side, record
from edgevit.devices.session import Here, Session, here
from edgevit.devices.transport import PageTransport, Tell
from edgevit.errors import MeasureError
from edgevit.progress import Progress
from edgevit.stages import Measurement, Round

__all__ = ["BenchPlan", "Job", "Profile", "once", "order", "profile", "record"]

BUILD_LIMIT_S = 3600.0
"""Seconds a build on a device may take; the timing of kernels on a small board is slow."""
LOAD_LIMIT_S = 900.0
"""Seconds a runner may need beyond its sampling, mostly to load; a compile on a small board takes minutes."""


def say(text: str) -> None:
    """On standard error."""
    print(f"edgevit: {text}", file=sys.stderr, flush=True)


class Slot(NamedTuple):
    """One round to come: which engine, and its place in the comparison."""

    job: Job
    side: Side


def order(jobs: Sequence[Job], against: Job | None, rounds: int, in_turns: bool = False) -> list[Slot]:
    """The order of the rounds: `rounds` of each job.

    With `against` as A: for each block, for each bundle B: A B B A; in turns, each A B is a block, and so is each B A.
    Without: all bundles forward, then backward.
    """
    slots: list[Slot] = []
    if against is None:
        for number in range(rounds):
            turn = list(jobs) if number % 2 == 0 else list(reversed(jobs))
            slots += [Slot(job, Side(number // 2, "bundle", job.bundle)) for job in turn]
        return slots
    pairs = 1 if in_turns else 2  # of a block
    for block in range(-(-rounds // pairs)):
        for job in jobs:
            both = [
                Slot(against, Side(block, "against", job.bundle)),
                Slot(job, Side(block, "bundle", job.bundle)),
            ]
            for number in range(block * pairs, min(rounds, (block + 1) * pairs)):
                slots += both if number % 2 == 0 else reversed(both)
    return slots


def profile(
    jobs: Sequence[Job],
    against: Job | None = None,
    plan: BenchPlan | None = None,
    progress: Progress | None = None,
    device: Device | None = None,
    setup: Setup | None = None,
    tell: Tell = say,
) -> Profile:
    """Measure the jobs, each round in a fresh process, never two at once on a machine.

    Args:
        jobs: what to measure; names must differ.
        against: the other side of every comparison. It may be one of the jobs: that comparison is an A/A run.
        plan: how long and how often.
        progress: called as (bundle, rounds done, rounds in all) before every round and once at the end.
        device: where; None is this machine.
        setup: what is held and collected there.
        tell: called with what a person must do, as opening a page.

    Raises:
        MeasureError: a runner failed, another session runs on that machine, it cannot be reached, or the jobs do not
            make sense.
    """
    plan, setup = plan or BenchPlan(), setup or Setup()
    _check(jobs, against)
    if plan.turn:
        _check_turns(jobs, against, device)
    if device is None and setup.hold:
        raise MeasureError(
            f"holding {', '.join(setup.hold)} needs --device NAME; for this machine, add one of transport local"
        )
    slots = order(jobs, against, plan.rounds, plan.turn > 0)
    rounds: list[Round] = []
    records: list[Mapping[str, Any]] = []
    every = [*jobs, *([against] if against else [])]
    with opened(device, every, tell) as session:
        session.prepare(setup)
        about, before = session.device(), session.state()
        built = _build(session, every, plan, before["usable_cores"], progress)
        for now, found in _measured(session, slots, plan, before["usable_cores"], progress):
            rounds += [_round(slot.job.bundle, one) for slot, one in zip(now, found, strict=True)]
            records += found
        after = session.state()
        prepared = session.end()
    if progress:
        progress(slots[-1].job.bundle, len(slots), len(slots))
    measurement = Measurement(about, {**prepared, **built, "before": before, "after": after}, tuple(rounds))
    return Profile(
        measurement,
        tuple(slot.side for slot in slots),
        tuple(records),
        plan,
        None if against is None else against.bundle,
    )


def _measured(
    session: Session, slots: Sequence[Slot], plan: BenchPlan, cores: int, progress: Progress | None
) -> Iterator[tuple[Sequence[Slot], list[dict[str, Any]]]]:
    """Rounds with their records, those together that take turns."""
    at_once = 2 if plan.turn else 1
    limit_s = LOAD_LIMIT_S + 2 * plan.max_seconds
    for number in range(0, len(slots), at_once):
        now = slots[number : number + at_once]
        if progress:
            progress(now[0].job.bundle, number, len(slots))
        places = [_place(slot.job, number + i, len(slots)) for i, slot in enumerate(now)]
        todo = [_job_json(slot.job, plan, number + i, cores, session.engine(slot.job)) for i, slot in enumerate(now)]
        if plan.turn:
            yield now, cast("Here", session).run_pair(todo, places, limit_s)
        else:
            yield now, [session.run(todo[0], places[0], limit_s)]


def _place(job: Job, number: int, count: int) -> str:
    """How messages about a round begin."""
    return f"{job.bundle}: runner {job.runner!r}, round {number + 1} of {count}"


def _round(bundle: str, found: dict[str, Any]) -> Round:
    """A runner's record as a round; what is in the round alone leaves the record."""
    samples, load = tuple(found.pop("samples_ms")), found.pop("loadavg")
    loadavg = math.nan if load is None else load
    return Round(bundle, samples, found["load_ms"], found["first_ms"], found["peak_memory_bytes"], loadavg)


def once(job: Job) -> dict[str, Any]:
    """The record of one fresh process that loads an engine and runs it twice: what it takes, not how fast it is.

    Raises:
        MeasureError: the runner failed, or another session runs on this machine.
    """
    plan = BenchPlan(rounds=1, warmup_s=0, min_samples=1, min_seconds=0)
    with here() as session:
        todo = _job_json(job, plan, 0, conditions.usable_cores(), session.engine(job))
        found = session.run(todo, f"{job.bundle}: runner {job.runner!r}", LOAD_LIMIT_S + 2 * plan.max_seconds)
    del found["loadavg"]
    return found


def _build(
    session: Session, jobs: Sequence[Job], plan: BenchPlan, cores: int, progress: Progress | None
) -> dict[str, dict[str, Any]]:
    """Have the engines built that the device builds: `built`: bundle → how. Nothing where there are none."""
    found: dict[str, Any] = {}
    todo = {job.bundle: job for job in jobs if job.runner in BUILDERS}
    for name, job in todo.items():
        if progress:
            progress(f"build {name}", 0, 1)
        request = build_request(job, plan, cores, session.engine(job))
        record = session.run(request, f"{name}: building on the device", BUILD_LIMIT_S)
        found[name] = {**record["built"], "attention": record["attention"]}
    return {"built": found} if found else {}


def build_request(job: Job, plan: BenchPlan, cores: int, engine: str) -> dict[str, Any]:
    """What a runner is asked that shall not sample; cores, engine: as for a round."""
    return {**_job_json(job, plan, -1, cores, engine), "min_samples": 0}


def opened(device: Device | None, jobs: Sequence[Job], tell: Tell = say) -> AbstractContextManager[Session]:
    """The session on a device, or here."""
    if device is None:
        return here()
    if hasattr(device.transport, "hold"):
        return cast("PageTransport", device.transport).hold(device.name, jobs, tell)
    if hasattr(device.transport, "launcher"):
        from edgevit.devices.in_app import held

        return held(device, jobs)
    from edgevit.devices.remote import there

    return there(device, jobs)


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


def _check_turns(jobs: Sequence[Job], against: Job | None, device: Device | None) -> None:
    """Refuse what cannot take turns."""
    if against is None:
        raise MeasureError("sides take turns in a comparison: give --against BUNDLE, or leave --turn out")
    if device is not None:
        raise MeasureError(f"device {device.name}: only on this machine do two rounds take turns: leave --turn out")
    for job in (*jobs, against):
        if job.runner not in pair.RUNNERS:
            raise MeasureError(f"{job.bundle}: runner {job.runner!r} takes no turns ({', '.join(pair.RUNNERS)} do)")


def _job_json(job: Job, plan: BenchPlan, number: int, cores: int, engine: str) -> dict[str, Any]:
    """The runner's job, less the place of its record. cores, engine: of the machine that runs it."""
    threads = plan.threads or job.options.get("threads") or cores
    return {
        "engine": engine,
        "options": {**job.options, "threads": threads},
        "input": {"name": job.input_name, "shape": list(job.input_shape)},
        "seed": plan.seed,
        "round": number,
        "runner": job.runner,
        "warmup_s": plan.warmup_s,
        "min_samples": plan.min_samples,
        "min_seconds": plan.min_seconds,
        "max_seconds": plan.max_seconds,
        **({"turn": plan.turn} if plan.turn else {}),
        **({"cache": ""} if job.runner in BUILDERS else {}),  # the session knows where
    }

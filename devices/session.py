"""Where the rounds of a benchmark run: on this machine, or by `edgevit.devices.remote` on a device."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgevit.devices import conditions
from edgevit.devices.lock import session_lock
from edgevit.devices.pair import run_pair
from edgevit.devices.plan import RUNNERS, Job, Setup
from edgevit.devices.rounds import run_round


class Session(Protocol):
    """A machine that is held for one benchmark."""

    def device(self) -> dict[str, Any]:
        """What the machine is, see `conditions.device`."""

    def state(self) -> dict[str, Any]:
        """The state it is in, see `conditions.state`."""

    def prepare(self, setup: Setup) -> None:
        """Before the first round. Raises MeasureError."""

    def end(self) -> dict[str, Any]:
        """After the last round: what was prepared and restored, for the record. Raises MeasureError."""

    def engine(self, job: Job) -> str:
        """The path of a job's engine there."""

    def run(self, job: Mapping[str, Any], place: str, limit_s: float) -> dict[str, Any]:
        """One round: the runner's record, and `loadavg` from before it. Raises MeasureError."""


@dataclass(frozen=True)
class Here:
    """This machine. folder: scratch. lock: the session's."""

    folder: Path
    lock: int

    def device(self) -> dict[str, Any]:
        """By its system files."""
        return conditions.device()

    def state(self) -> dict[str, Any]:
        """By its system files."""
        return conditions.state()

    def prepare(self, setup: Setup) -> None:
        """Nothing is prepared here: a device of transport `local` does that."""

    def end(self) -> dict[str, Any]:
        """Nothing was."""
        return {}

    def engine(self, job: Job) -> str:
        """Where it is."""
        return str(Path(job.engine).resolve())

    def run(self, job: Mapping[str, Any], place: str, limit_s: float) -> dict[str, Any]:
        """In a fresh process of this Python."""
        load = conditions.load_average()
        if "cache" in job:
            job = {**job, "cache": str(self.folder / "engines")}
        found = run_round(job, RUNNERS[job["runner"]], self.folder, place, limit_s, self.lock)
        return {**found, "loadavg": load}

    def run_pair(
        self, jobs: Sequence[Mapping[str, Any]], places: Sequence[str], limit_s: float
    ) -> list[dict[str, Any]]:
        """Two rounds that take turns, see `edgevit.devices.pair`."""
        load = conditions.load_average()
        runners = [RUNNERS[job["runner"]] for job in jobs]
        found = run_pair(jobs, runners, self.folder, places, limit_s, self.lock)
        return [{**record, "loadavg": load} for record in found]


@contextmanager
def here() -> Iterator[Here]:
    """Hold this machine. Raises MeasureError where another session runs on it."""
    with session_lock() as lock, tempfile.TemporaryDirectory(prefix="edgevit-profile-") as folder:
        yield Here(Path(folder), lock)

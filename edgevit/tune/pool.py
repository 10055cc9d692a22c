"""Where trials run: in this process. One that dies takes its trial with it, no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgevit.tune.fidelity import run_trial

if TYPE_CHECKING:
    from edgevit.tune.record import Job, Record
    from edgevit.tune.workshop import Workshop


class Pool(Protocol):
    """Takes as many jobs as it has room for."""

    @property
    def room(self) -> int:
        """How many more."""

    def submit(self, job: Job) -> None:
        """Begin a trial; room must be left."""

    def wait(self) -> list[tuple[Job, Record | None]]:
        """Trials that ended, at least one; None where its worker died."""

    def close(self) -> None:
        """End the workers."""


class Here:
    """One trial at a time, in this process."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.jobs: list[Job] = []

    @property
    def room(self) -> int:
        """One, or none."""
        return 1 - len(self.jobs)

    def submit(self, job: Job) -> None:
        """It is run by `wait`."""
        self.jobs.append(job)

    def wait(self) -> list[tuple[Job, Record | None]]:
        """Run it."""
        job = self.jobs.pop()
        return [(job, run_trial(self.shop, job))]

    def close(self) -> None:
        """Nothing to end."""

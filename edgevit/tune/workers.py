"""Trials in processes of this machine: accuracy and builds side by side, latency while the others hold still."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from edgevit.tune.fidelity import run_trial

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from edgevit.tune.record import Job, Record
    from edgevit.tune.settings import TuneSettings

STOP_S = 5.0
"""Given to a worker that is told to end."""


@dataclass
class Worker:
    """A process and the pipe to it; job: what it is at."""

    process: SpawnProcess
    pipe: Connection
    job: Job | None = None


@dataclass
class Workers:
    """`count` processes; one that dies is replaced."""

    settings: TuneSettings
    count: int
    staff: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.staff = [self._hire() for _ in range(self.count)]

    @property
    def room(self) -> int:
        """Workers without a trial."""
        return sum(worker.job is None for worker in self.staff)

    def submit(self, job: Job) -> None:
        """Hand a trial to a free worker."""
        number = next(i for i, worker in enumerate(self.staff) if worker.job is None)
        try:
            self.staff[number].pipe.send(job)
        except OSError:  # it died while it had nothing to do
            self.staff[number] = self._hire()
            self.staff[number].pipe.send(job)
        self.staff[number].job = job

    def wait(self) -> list[tuple[Job, Record | None]]:
        """Until a trial ends, or its worker."""
        busy = {worker.pipe: worker for worker in self.staff if worker.job is not None}
        ended: list[tuple[Job, Record | None]] = []
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index]  # only pipes were waited for
            job = worker.job
            assert job is not None
            try:
                ended.append((job, worker.pipe.recv()))
                worker.job = None
            except (EOFError, OSError):  # it died: the pipe's other end closed
                ended.append((job, None))
                worker.process.join()
                self.staff[self.staff.index(worker)] = self._hire()
        return ended

    def close(self) -> None:
        """End all of them; a trial that one is at is lost."""
        for worker in self.staff:
            worker.pipe.close()  # who has no trial ends by this, and leaves nothing behind
            if worker.job is not None:
                worker.process.terminate()
        for worker in self.staff:
            worker.process.join(STOP_S)
            worker.process.kill()

    def _hire(self) -> Worker:
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of torch
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self.settings, theirs, self.count), daemon=True)
        process.start()
        theirs.close()
        return Worker(process, ours)


def _work(settings: TuneSettings, pipe: Connection, count: int) -> None:
    """A worker's life: load, then trial after trial, until the driver is gone."""
    import torch

    from edgevit.tune.meter import meter
    from edgevit.tune.workshop import Workshop

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's, who then ends its workers
    threading.Thread(target=_end_with_driver, daemon=True).start()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))
    shop = Workshop(settings, meter(settings.device))
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(run_trial(shop, job))


def _end_with_driver() -> None:
    """A killed driver's workers must not go on writing into the folder that the next call resumes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

"""Who may compute while latency is measured on this machine: nobody else of the study."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """Locks in a folder that workers share; the kernel frees them when their holder ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Many at once, and none while something is measured here. Who wants to measure is not overtaken."""
        with self._lock("turn", fcntl.LOCK_EX):
            stream = (self.folder / ".room").open("w")
            fcntl.flock(stream, fcntl.LOCK_SH)
        with stream:
            yield

    @contextmanager
    def measuring(self, local: bool) -> Iterator[None]:
        """One at a time; on this machine it waits until nobody computes."""
        with self._lock("meter", fcntl.LOCK_EX):
            if not local:
                yield
                return
            with self.quiet():
                yield

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Wait until nobody computes, and let nobody begin."""
        with self._lock("turn", fcntl.LOCK_EX), self._lock("room", fcntl.LOCK_EX):
            yield

    @contextmanager
    def _lock(self, name: str, kind: int) -> Iterator[None]:
        with (self.folder / f".{name}").open("w") as stream:
            fcntl.flock(stream, kind)
            yield

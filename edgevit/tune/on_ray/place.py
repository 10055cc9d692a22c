"""Where the workers of a machine keep what they build, and take turns: one folder of the temporary directory."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgevit.errors import EdgeVitError


def machine() -> Path:
    """The folder of this machine and user, whose Turns all Ray nodes and studies here share. Raises EdgeVitError."""
    folder = Path(tempfile.gettempdir()) / f"edgevit-tune-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.lstat().st_uid
    except OSError as error:
        raise EdgeVitError(f"{folder} cannot be made ({error.strerror}): set TMPDIR to a writable folder") from error
    if owner != os.getuid():
        raise EdgeVitError(f"{folder} belongs to somebody else: set TMPDIR to a folder of your own")
    return folder


@dataclass(frozen=True)
class Claim:
    """A folder of one process, which holds its lock until it ends, however it ends."""

    folder: Path
    lock: IO[str]

    def remove(self) -> None:
        """With all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()


def claim() -> Claim:
    """A new folder; what dead processes left beside it is removed. Raises EdgeVitError."""
    root = machine()
    with (root / ".claims").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # nobody sweeps a folder that is not locked yet
        for other in root.iterdir():
            if other.is_dir() and _free(other):
                shutil.rmtree(other, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=root))
        lock = (folder / ".held").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return Claim(folder, lock)


def _free(folder: Path) -> bool:
    """Whether the process that claimed a folder is gone."""
    with (folder / ".held").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True

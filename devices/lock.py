"""One latency session at a time on a machine, or on a phone reached from it: a lock file in the temporary directory.

The lock is the kernel's (`flock`), so it ends with its holder, however that ends: a file left behind by a
killed process refuses nobody. The file's text is only for the message. Standard library alone, Python 3.9 or later:
sessions on other devices are sent this file.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgevit.errors import MachineBusy, MeasureError


def lock_path(phone: str = "") -> Path:
    """Where the lock of this machine is, or of a phone by its serial number."""
    name = re.sub(r"[^A-Za-z0-9]", "_", phone)
    return Path(tempfile.gettempdir()) / f"edgevit-profile{'-' if name else ''}{name}.lock"


def _alive(pid: int) -> bool:
    """Whether a process with this number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _refusal(path: Path, phone: str) -> MachineBusy:
    """Who holds the lock, as an error."""
    where, text = f"phone {phone}" if phone else "this machine", ""
    with suppress(OSError):
        text = path.read_text("ascii", "replace").strip()
    if not text.isdigit():
        return MachineBusy(f"another edgevit profile is running on {where} ({path}): wait for it to end")
    if not _alive(int(text)):
        return MachineBusy(
            f"a runner of the edgevit profile that was process {text} is still running on {where}: "
            "it ends by itself within a round, try again then"
        )
    return MachineBusy(
        f"another edgevit profile (process {text}) is running on {where}, and two at once would "
        "slow each other: wait for it to end, or stop that process"
    )


def _open(path: Path) -> int:
    """The lock file's descriptor; readable is enough to lock a file that another user left."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except PermissionError:
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise MeasureError(f"the lock file {path} cannot be opened ({error.strerror}): remove it") from error
    except OSError as error:
        raise MeasureError(
            f"the lock file {path} cannot be made ({error.strerror}): set TMPDIR to a writable folder"
        ) from error


@contextmanager
def session_lock(phone: str = "") -> Iterator[int]:
    """Hold the machine's lock, or a phone's; yields its descriptor, or raises MachineBusy naming the holding process.

    A child that inherits the descriptor holds the lock too: when its parent is killed, the next session is
    refused until the orphaned runner has ended.
    """
    path = lock_path(phone)
    while True:
        held = _open(path)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(held)
            raise _refusal(path, phone) from error
        # The last holder may have removed this file between our open and our lock: then it locks nothing.
        with suppress(FileNotFoundError):
            if os.fstat(held).st_ino == path.stat().st_ino:
                break
        os.close(held)
    try:
        with suppress(OSError):  # a read-only descriptor: the lock holds, only its text is another's
            os.ftruncate(held, 0)
            os.pwrite(held, f"{os.getpid()}\n".encode("ascii"), 0)
        yield held
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(held)

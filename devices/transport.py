"""How a device is reached: run, push, pull, nothing else. One file a transport, one line in TRANSPORTS.

A transport is a frozen dataclass; its fields are the keys that a device of the user's `devices.toml` may have, those
without a default must be there. Every error is a MeasureError that names the step that failed and what to do.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from edgevit.devices.rounds import last_line
from edgevit.errors import MeasureError

if TYPE_CHECKING:
    from edgevit.devices.in_app import Launcher
    from edgevit.devices.in_browser import InBrowser
    from edgevit.devices.plan import Job

TRANSPORTS = {
    "local": "edgevit.devices.local:Local",
    "ssh": "edgevit.devices.ssh:Ssh",
    "adb": "edgevit.devices.adb:Adb",
    "ios-usb": "edgevit.devices.ios_usb:IosUsb",
    "ios-mac": "edgevit.devices.ios_mac:IosMac",
    "browser": "edgevit.devices.browser:Browser",
}

Tell = Callable[[str], None]
"""Says to a person what to do now."""


class Done(NamedTuple):
    """How a command ended."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def last_line(self) -> str:
        """The last line that says something, of standard error and else of standard output."""
        return last_line(self.stderr) or last_line(self.stdout) or "it said nothing"

    def hinted(self, hints: Sequence[tuple[str, str]]) -> str:
        """`last_line`, with what to do behind it where one of `hints` (what is said → what to do) knows."""
        text = (self.stderr + self.stdout).decode("utf-8", "replace")
        return self.last_line + next((f"; {hint}" for found, hint in hints if found in text), "")


class Transport(Protocol):
    """One way to one device."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def connect(self) -> AbstractContextManager[None]:
        """Reach the device, once, and hold what makes the next calls quick. Raises MeasureError."""

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command of this machine that runs `argv` on the device, standard input and output passed through."""

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = 60) -> Done:
        """Run `argv` on the device to its end. Raises MeasureError where the way there failed or the time is up."""

    def push(self, source: Path, target: str, timeout_s: float = 600) -> None:
        """Copy a file to a path on the device, whose folder is made. Raises MeasureError."""

    def pull(self, source: str, target: Path, timeout_s: float = 600) -> None:
        """Copy a file of the device here. Raises MeasureError."""


class PythonTransport(Transport, Protocol):
    """A way to a device that runs Python: the session of `edgevit.devices.agent` can live there."""

    @property
    def python(self) -> str:
        """The interpreter that has the runtimes: a path or a name on the device."""

    @property
    def work(self) -> str:
        """The folder for everything that edgevit leaves there; a relative one is relative to the login's home."""


class PhoneTransport(Transport, Protocol):
    """A way to a device that runs no Python, by a program that may be a stand-in."""

    @property
    def phone(self) -> str:
        """What tells it from every other: serial number or UDID."""

    def stand_in(self) -> bool:
        """Whether it is: then nothing that comes over it is a measurement. While connected."""

    def launcher(self) -> Launcher:
        """How its runner is started. Raises MeasureError: the device has none."""


class PageTransport(Protocol):
    """A way to a browser, where nothing is run, pushed or pulled: a page that a person opens there measures."""

    def hold(self, name: str, jobs: Sequence[Job], tell: Tell) -> AbstractContextManager[InBrowser]:
        """The session on device `name`, once its browser is there. Raises MeasureError."""


def call(command: Sequence[str], what: str, stdin: Any = b"", stdout: Any = None, timeout_s: float = 60) -> Done:
    """Run a command of this machine. stdin: bytes or an open file; stdout: an open file, else it is returned.

    Raises MeasureError, with `what` as its subject.
    """
    given = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    try:
        done = subprocess.run(
            list(command), stdout=stdout or subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout_s, **given
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureError(
            f"{what}: no end after {timeout_s:g} s, stopped; is the device reachable and idle?"
        ) from error
    except OSError as error:
        raise MeasureError(f"{what}: {command[0]} does not start here: {error.strerror}; install it") from error
    return Done(done.returncode, done.stdout or b"", done.stderr)

"""Transport `adb`: an Android phone, over USB or the network. Files belong under /data/local/tmp."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.devices.collect import is_fake
from edgevit.devices.transport import Done, call
from edgevit.errors import MeasureError
from edgevit.files import whole

if TYPE_CHECKING:
    from edgevit.devices.on_android import Program

SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]*")
OWN = re.compile(rb"adb: |error: (device|closed|protocol|no devices|more than one)")
"""How adb begins when it is adb that failed, and not what it ran."""
HINTS = (
    ("unauthorized", "accept the question on its screen"),
    ("offline", "unplug it, plug it in again, and unlock it"),
    ("not found", "is it plugged in, and USB debugging on? `adb devices -l` lists what there is"),
)
"""What adb says → what to do."""


@dataclass(frozen=True)
class Adb:
    """serial: as `adb devices` shows it. work: a folder on the phone that the shell may write to and run from.

    runner: a folder here, with the built runner of `edgevit devices app --platform android`; without it nothing
        is measured.
    """

    serial: str
    work: str = "/data/local" + "/tmp" + "/edgevit"
    runner: str = ""

    def __post_init__(self) -> None:
        if not SERIAL.fullmatch(self.serial):
            raise MeasureError(f"serial={self.serial!r} is no serial number: give one that `adb devices` shows")
        if not self.work.startswith("/"):
            raise MeasureError(f"work={self.work!r} must be an absolute path on the phone")
        if self.runner and not Path(self.runner).expanduser().is_absolute():
            raise MeasureError(f"runner={self.runner!r} must be an absolute path here, such as $PWD/phone")

    @property
    def phone(self) -> str:
        """Its serial number."""
        return self.serial

    def stand_in(self) -> bool:
        """Whether adb is one: then nothing that comes over it is a measurement. While connected."""
        return is_fake("adb")

    def launcher(self) -> Program:
        """Of the built runner. Raises MeasureError."""
        from edgevit.devices.on_android import Program

        return Program(self, self.work, self.runner)

    @contextmanager
    def connect(self) -> Iterator[None]:
        """See that the phone is there and lets us in."""
        done = self._adb(["get-state"], "connecting", 30)
        if done.stdout.strip() != b"device":
            raise self._error("connecting", done)
        yield

    def command(self, argv: Sequence[str]) -> list[str]:
        """One string for the phone's shell, without a terminal; its exit status comes back."""
        return ["adb", "-s", self.serial, "shell", "-T", shlex.join(argv)]

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = 60) -> Done:
        """Run it; a failure of adb itself is told by what it says."""
        done = call(self.command(argv), f"adb {self.serial}: running {argv[0]}", stdin, timeout_s=timeout_s)
        if done.status and OWN.match(done.stderr):
            raise self._error(f"running {argv[0]}", done)
        return done

    def push(self, source: Path, target: str, timeout_s: float = 600) -> None:
        """With adb's own protocol, which makes the folder, beside its place; renamed when whole."""
        step = f"copying {source.name} to {target}"
        self._copy(["push", str(source), f"{target}.part"], step, timeout_s)
        done = self.run(["mv", f"{target}.part", target])
        if done.status:
            raise self._error(step, done)

    def pull(self, source: str, target: Path, timeout_s: float = 600) -> None:
        """With adb's own protocol, beside its place; renamed when whole."""
        with whole(target) as part:
            self._copy(["pull", source, str(part)], f"fetching {source}", timeout_s)

    def _copy(self, words: list[str], step: str, timeout_s: float) -> None:
        done = self._adb(words, step, timeout_s)
        if done.status:
            raise self._error(step, done)

    def _adb(self, words: list[str], step: str, timeout_s: float) -> Done:
        return call(["adb", "-s", self.serial, *words], f"adb {self.serial}: {step}", timeout_s=timeout_s)

    def _error(self, step: str, done: Done) -> MeasureError:
        return MeasureError(f"adb {self.serial}: {step} failed: {done.hinted(HINTS)}")

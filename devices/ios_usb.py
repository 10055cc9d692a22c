"""Transport `ios-usb`: an iPhone or iPad on this machine's USB, by the program pymobiledevice3.

Only one app is reached: `run` launches it with the words and passes on what it prints, `push` and `pull` are its data
container. iOS 17.4 or later, developer mode on, the disk image mounted (`pymobiledevice3 mounter auto-mount`).
"""

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
    from edgevit.devices.in_app import App

PROGRAM = "pymobiledevice3"
UDID = re.compile(r"[0-9A-Fa-f-]{20,40}")
BUNDLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
HINTS = (
    ("DeveloperMode", "turn developer mode on: pymobiledevice3 amfi enable-developer-mode"),
    ("InvalidService", "mount the developer image: pymobiledevice3 mounter auto-mount"),
    ("DeviceNotFound", "is it plugged in, unlocked and trusted? `pymobiledevice3 usbmux list` lists what there is"),
    ("NotPaired", "unlock it and trust this computer"),
)
"""What the program says → what to do."""


@dataclass(frozen=True)
class IosUsb:
    """udid: of the device. app: the bundle identifier of the installed runner app."""

    udid: str
    app: str

    def __post_init__(self) -> None:
        check(self.udid, self.app)

    @property
    def phone(self) -> str:
        """Its UDID."""
        return self.udid

    def stand_in(self) -> bool:
        """Whether the program is one: then nothing that comes over it is a measurement. While connected."""
        return is_fake(PROGRAM)

    def launcher(self) -> App:
        """Of the installed runner app."""
        from edgevit.devices.in_app import App

        return App(self)

    @contextmanager
    def connect(self) -> Iterator[None]:
        """See that the device is there."""
        done = call([PROGRAM, "usbmux", "list"], "ios-usb: looking for devices")
        if done.status or self.udid.lower().encode() not in done.stdout.lower():
            raise MeasureError(f"ios-usb {self.udid}: connecting failed: not among the devices; {HINTS[2][1]}")
        yield

    def command(self, argv: Sequence[str]) -> list[str]:
        """Launch the app with these words, its output streamed."""
        return [PROGRAM, "developer", "dvt", "launch", shlex.join([self.app, *argv]), "--stream", "--udid", self.udid]

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = 60) -> Done:
        """Launch it and wait for its end."""
        if stdin:
            raise MeasureError("ios-usb: an app has no standard input; push a file")
        return self._call(self.command(argv), f"launching {self.app}", timeout_s)

    def push(self, source: Path, target: str, timeout_s: float = 600) -> None:
        """Into the app's data container."""
        words = [PROGRAM, "apps", "push", self.app, str(source), target, "--udid", self.udid]
        self._call(words, f"copying {source.name} to {target}", timeout_s)

    def pull(self, source: str, target: Path, timeout_s: float = 600) -> None:
        """From the app's data container, beside its place here; renamed when whole."""
        with whole(target) as part:
            words = [PROGRAM, "apps", "pull", self.app, source, str(part), "--udid", self.udid]
            self._call(words, f"fetching {source}", timeout_s)

    def _call(self, words: list[str], step: str, timeout_s: float) -> Done:
        done = call(words, f"ios-usb {self.udid}: {step}", timeout_s=timeout_s)
        if done.status:
            raise MeasureError(f"ios-usb {self.udid}: {step} failed: {done.hinted(HINTS)}")
        return done


def check(udid: str, app: str) -> None:
    """Refuse what is no device or no app. Raises MeasureError."""
    if not UDID.fullmatch(udid):
        raise MeasureError(f"udid={udid!r} is no identifier of a device")
    if not BUNDLE.fullmatch(app):
        raise MeasureError(f"app={app!r} is no bundle identifier, as com.example.runner")

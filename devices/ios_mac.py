"""Transport `ios-mac`: an iPhone or iPad that a Mac knows, by ssh to the Mac and `xcrun devicectl` there.

Only one app is reached: `run` launches it with the words and passes on what it prints, `push` and `pull` are its data
container. Xcode 15 or later; the device is paired with the Mac and in developer mode.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.devices.collect import FAKE
from edgevit.devices.ios_usb import check
from edgevit.devices.ssh import Ssh
from edgevit.devices.transport import Done
from edgevit.errors import MeasureError

if TYPE_CHECKING:
    from edgevit.devices.in_app import App

DEVICECTL = ("xcrun", "devicectl")


def parse_devices(text: bytes) -> dict[str, dict[str, Any]]:
    """The JSON of `devicectl list devices`: identifier and UDID → name, model, os, build, developer mode.

    Raises MeasureError.
    """
    try:
        listed = json.loads(text)["result"]["devices"]
        found = {}
        for device in listed:
            own, hardware = device["deviceProperties"], device["hardwareProperties"]
            facts = {
                "name": own.get("name"),
                "model": hardware.get("productType"),
                "os": own.get("osVersionNumber"),
                "build": own.get("osBuildUpdate"),
                "developer_mode": own.get("developerModeStatus"),
            }
            found[device["identifier"]] = found[hardware["udid"]] = facts
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MeasureError(f"devicectl list devices gave no list of devices: {error!r}") from error
    return found


@dataclass(frozen=True)
class IosMac:
    """host, config: of the Mac, as for ssh. udid: of the device. app: the bundle identifier of the runner app.

    work: a folder on the Mac for files on their way.
    """

    host: str
    udid: str
    app: str
    work: str = ".cache/edgevit"
    config: str = ""
    _mac: Ssh = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check(self.udid, self.app)
        object.__setattr__(self, "_mac", Ssh(self.host, "python3", self.work, self.config))

    def launcher(self) -> App:
        """Of the installed runner app."""
        from edgevit.devices.in_app import App

        return App(self)

    @contextmanager
    def connect(self) -> Iterator[None]:
        """Reach the Mac, and see that it knows the device and the device lets it in."""
        with self._mac.connect():
            self._check_device()
            yield

    def _check_device(self) -> None:
        """Raises MeasureError: the Mac does not know it, or it lets nobody in."""
        listed = f"{self.work}/devices-{uuid.uuid4().hex[:8]}.json"
        script = '"$@" >/dev/null && cat "$0"; status=$?; rm -f "$0"; exit $status'
        words = [*DEVICECTL, "list", "devices", "--quiet", "--json-output", listed]
        self._mac.run(["mkdir", "-p", self.work])
        done = self._mac.run(["sh", "-c", script, listed, *words], timeout_s=120)
        if done.status:
            raise self._error("listing devices", done)
        facts = parse_devices(done.stdout).get(self.udid)
        if facts is None:
            raise MeasureError(f"ios-mac {self.host}: the Mac knows no device {self.udid}: pair it in Xcode")
        if facts["developer_mode"] != "enabled":
            raise MeasureError(
                f"ios-mac {self.host}: developer mode of {facts['name']} is {facts['developer_mode']}: turn it on in "
                "Settings, Privacy & Security"
            )

    @property
    def phone(self) -> str:
        """Its UDID."""
        return self.udid

    def stand_in(self) -> bool:
        """Whether the Mac's xcrun is one: then nothing that comes over it is a measurement. While connected."""
        return FAKE in self._mac.run(["sh", "-c", 'head -c 400 "$(command -v xcrun)"']).stdout

    def command(self, argv: Sequence[str]) -> list[str]:
        """Launch the app on the device with these words, its output on ours."""
        return self._mac.command(self._launch(argv))

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = 60) -> Done:
        """Launch it and wait for its end."""
        if stdin:
            raise MeasureError("ios-mac: an app has no standard input; push a file")
        return self._run(self._launch(argv), f"launching {self.app}", timeout_s)

    def push(self, source: Path, target: str, timeout_s: float = 600) -> None:
        """To the Mac, then into the app's container."""
        between = f"{self.work}/{uuid.uuid4().hex}"
        self._mac.push(source, between, timeout_s)
        try:
            self._run(self._copy("to", between, target), f"copying {source.name} to {target}", timeout_s)
        finally:
            self._mac.run(["rm", "-f", between])

    def pull(self, source: str, target: Path, timeout_s: float = 600) -> None:
        """From the app's container to the Mac, then here."""
        between = f"{self.work}/{uuid.uuid4().hex}"
        self._mac.run(["mkdir", "-p", self.work])
        try:
            self._run(self._copy("from", source, between), f"fetching {source}", timeout_s)
            self._mac.pull(between, target, timeout_s)
        finally:
            self._mac.run(["rm", "-f", between])

    def _launch(self, argv: Sequence[str]) -> list[str]:
        launch = [*DEVICECTL, "device", "process", "launch", "--console", "--terminate-existing"]
        return [*launch, "--device", self.udid, self.app, *argv]

    def _copy(self, way: str, source: str, target: str) -> list[str]:
        place = ["--domain-type", "appDataContainer", "--domain-identifier", self.app, "--user", "mobile"]
        device = ["--device", self.udid]
        return [*DEVICECTL, "device", "copy", way, *device, *place, "--source", source, "--destination", target]

    def _run(self, words: list[str], step: str, timeout_s: float) -> Done:
        done = self._mac.run(words, timeout_s=timeout_s)
        if done.status:
            raise self._error(step, done)
        return done

    def _error(self, step: str, done: Done) -> MeasureError:
        lacks_xcode = done.status == 127 or b"xcrun: error" in done.stderr
        hint = "; is Xcode there, and chosen by xcode-select?" if lacks_xcode else ""
        return MeasureError(f"ios-mac {self.host}: {step} failed: {done.last_line}{hint}")

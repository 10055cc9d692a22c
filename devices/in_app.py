"""A benchmark's session in the runner of a phone: files pushed, one launch a round, its record pulled.

The runner is written by `edgevit.devices.app_project`: an app on an iPhone or iPad, a program on Android
(`edgevit.devices.on_android`). Each launch is a process of its own that reads job.json in its work folder, does it,
writes record.json beside it, and ends; Job.swift says what it is asked and answers.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgevit.devices.conditions import UNKNOWN
from edgevit.devices.config import Device
from edgevit.devices.lock import session_lock
from edgevit.devices.plan import IN_APP, Job, Setup, pseudo_random
from edgevit.devices.rounds import checked, read_record
from edgevit.devices.transport import Done, PhoneTransport
from edgevit.devices.tree import push_tree, tree_name
from edgevit.errors import MeasureError

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
"""Of jobs and records."""
INPUTS = 2
"""Inputs on which a device's outputs are compared with what the engine computes here."""
FAR = 0.1
"""Outputs that differ by more, relative: the device computes something else. float16 is within 0.02."""
LAUNCH_S = 120.0
"""Seconds a launch without measuring may take: an app that starts, and the first compilation of a model."""
HOT = ("serious", "critical", "light", "moderate", "severe", "emergency", "shutdown")
"""Thermal states in which the system slows down: of iOS the first two, of Android all but none."""


class Launcher(Protocol):
    """How a phone's runner is started, where its files lie, and what the phone tells past the runner."""

    transport: PhoneTransport
    work: str
    """Everything that is pushed lies there."""
    runners: tuple[str, ...]
    name: str
    """What messages call the runner."""
    lost: str
    """What to ask where it left no record."""

    def ready(self, jobs: Sequence[Job]) -> None:
        """Have the runner there that the jobs need. Raises MeasureError."""

    def launch(self, job: Mapping[str, Any], limit_s: float) -> Done:
        """Start it on the job that lies in the work folder, and wait for its end. Raises MeasureError."""

    def facts(self) -> dict[str, Any]:
        """What the phone is, where the runner does not say."""

    def state(self) -> dict[str, Any]:
        """The state that it is in, where the runner does not say."""

    def thermal(self) -> str | None:
        """Its thermal state now; None: the runner says it before and after a round, or nobody does."""


class App:
    """The runner app of an iPhone or iPad, which says everything itself."""

    work = "Documents/edgevit"  # in the app's container
    runners: tuple[str, ...] = IN_APP
    name = "the app"
    lost = "is it unlocked?"

    def __init__(self, transport: PhoneTransport) -> None:
        self.transport = transport

    def ready(self, jobs: Sequence[Job]) -> None:
        """It was installed by hand."""

    def launch(self, job: Mapping[str, Any], limit_s: float) -> Done:
        """One launch of the app."""
        return self.transport.run(["--job", f"{self.work}/job.json"], timeout_s=limit_s)

    def facts(self) -> dict[str, Any]:
        """The app says them."""
        return {}

    def state(self) -> dict[str, Any]:
        """The app says it when it is asked what it is."""
        return {}

    def thermal(self) -> str | None:
        """The app says it."""
        return None


class InApp:
    """The runner that is held: see `edgevit.devices.session.Session`."""

    def __init__(self, name: str, launcher: Launcher, jobs: Sequence[Job], folder: Path, fake: bool) -> None:
        self.name = name
        self.launcher = launcher
        self.transport = launcher.transport
        self.jobs = {job.bundle: job for job in jobs}
        self.folder = folder
        self.fake = fake
        self.facts: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.hot: Counter[str] = Counter()
        self.there = b""  # the input that was pushed last: every round has the same

    def open(self) -> None:
        """Ask the runner what it is, and push the engines that are not there. Raises MeasureError."""
        self.launcher.ready(list(self.jobs.values()))
        trees = {tree_name(job.files): job for job in self.jobs.values()}
        place = f"device {self.name}"
        self.facts = {**self._ask({"kind": "about", "trees": list(trees)}, LAUNCH_S, place), **self.launcher.facts()}
        cores, present = self.facts.get("cores"), self.facts.get("present")
        if not isinstance(cores, int) or cores < 1 or not isinstance(present, list):
            said = f"cores={repr(cores)[:40]}, present={repr(present)[:40]}"
            raise MeasureError(f"{place}: {self.launcher.name} says {said}: write it again")
        if self.facts.get("low_power"):
            raise MeasureError(f"{place} saves power: turn low power mode off in Settings, Battery")
        for tree, job in trees.items():
            if tree not in present:
                assert job.folder is not None
                push_tree(self.transport, job.folder, list(job.files), f"{self.launcher.work}/trees/{tree}")

    def device(self) -> dict[str, Any]:
        """What it is, as the system tells."""
        about = {key: self.facts.get(key) or UNKNOWN for key in ("model", "os", "arch")}
        more: dict[str, Any] = {key: self.facts[key] for key in ("cores", "build") if key in self.facts}
        return {"name": self.name, **about, "cpu": self.facts.get("cpu") or about["model"], **more}

    def state(self) -> dict[str, Any]:
        """There is no load average of a phone."""
        kept = {key: self.facts.get(key) for key in ("thermal", "battery", "charging")}
        return {"usable_cores": self.facts["cores"], "loadavg": None, **kept, **self.launcher.state()}

    def prepare(self, setup: Setup) -> None:
        """See that every engine loads there and computes what it does here. Raises MeasureError."""
        if setup.hold:
            raise MeasureError(
                f"device {self.name}: nothing holds {', '.join(setup.hold)} of a phone: leave --lock-clocks and "
                "--power-mode out"
            )
        for job in self.jobs.values():
            self._check(job)

    def end(self) -> dict[str, Any]:
        """What the record says besides the rounds."""
        notes = [
            f"{name}: {count} rounds began or ended while the device was hot: let it cool, and again"
            for name, count in sorted(self.hot.items())
        ]
        return {"app": self.facts, "outputs": self.outputs, "notes": notes}

    def engine(self, job: Job) -> str:
        """Where it was put."""
        assert job.folder is not None
        return f"{self.launcher.work}/trees/{tree_name(job.files)}/{job.engine.relative_to(job.folder).as_posix()}"

    def run(self, job: Mapping[str, Any], place: str, limit_s: float) -> dict[str, Any]:
        """In a fresh launch of the runner."""
        if job.get("layers"):
            raise MeasureError(f"{place}: {self.launcher.name} times no single layers: leave --layers or --device out")
        self._input(pseudo_random(job["input"]["shape"], job["seed"]))
        before = self.launcher.thermal()
        found = self._ask({**job, "kind": "round"}, limit_s, place)
        heat = {"thermal_before": before, "thermal_after": self.launcher.thermal()} if before else {}
        said = {"threads": 0, **found, **heat, "fake": self.fake, "runner": job["runner"], "job": dict(job)}
        record = checked(said, place)
        if any(record.get(when) in HOT for when in ("thermal_before", "thermal_after")):
            self.hot[place.partition(":")[0]] += 1
        return {**record, "loadavg": None}

    def _check(self, job: Job) -> None:
        """Load an engine there and compare its outputs with the engine's here, on noise."""
        import numpy as np

        place = f"{job.bundle}: the check before the first round"
        inputs = pseudo_random([INPUTS, *job.input_shape[1:]], 0)
        by, want = _outputs_here(job, inputs)
        self._input(inputs)
        about = {"runner": job.runner, "engine": self.engine(job), "options": dict(job.options)}
        shape = {"name": job.input_name, "shape": list(job.input_shape)}
        found = self._ask({"kind": "check", **about, "input": shape, "count": INPUTS}, LAUNCH_S, place)
        try:
            got = np.array(found.get("outputs"), np.float32)
        except (TypeError, ValueError, OverflowError) as error:
            raise MeasureError(f"{place}: its outputs are no rows of numbers ({error})") from error
        if got.shape != want.shape:
            raise MeasureError(f"{place}: outputs of {got.shape} came back, {want.shape} were expected")
        off = float((np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1).clip(1e-30)).max())
        if not off <= FAR:
            raise MeasureError(
                f"{place}: its outputs on {self.name} differ from {by} by {off:.2g} of their size: it computes "
                "something else; export in fp32, or for an iPhone with other compute units (--option units=cpuOnly)"
            )
        self.outputs[job.bundle] = {"relative_diff": off, "inputs": INPUTS, "against": by}

    def _input(self, values: np.ndarray[Any, Any]) -> None:
        """Put the float32 values where the runner reads them."""
        data = values.astype("<f4").tobytes()
        if data == self.there:
            return
        path = self.folder / "input.f32"
        path.write_bytes(data)
        self.transport.push(path, f"{self.launcher.work}/input.f32")
        self.there = data

    def _ask(self, job: Mapping[str, Any], limit_s: float, place: str) -> dict[str, Any]:
        """What one launch of the runner answers. Raises MeasureError."""
        work, runner = self.launcher.work, self.launcher.name
        asked = {"schema": SCHEMA, "id": uuid.uuid4().hex, **job}
        todo, record = self.folder / "job.json", self.folder / "record.json"
        todo.write_text(json.dumps(asked), "utf-8")
        self.transport.push(todo, f"{work}/job.json")
        said = self.launcher.launch(asked, limit_s)
        record.unlink(missing_ok=True)
        try:
            self.transport.pull(f"{work}/record.json", record)
            found = read_record(record)
        except (MeasureError, OSError, ValueError) as error:
            raise MeasureError(
                f"{place}: {runner} left no record ({said.last_line}): {self.launcher.lost} {error}"
            ) from error
        if found.get("id") != asked["id"]:
            raise MeasureError(f"{place}: {runner} left the record of another launch ({said.last_line}): was it ended?")
        if found.get("schema") != SCHEMA:
            spoken = repr(found.get("schema"))[:40]
            raise MeasureError(f"{place}: {runner} speaks schema {spoken}, this is {SCHEMA}: write it again")
        if "error" in found:
            raise MeasureError(f"{place}: {runner} says: {str(found['error'])[:500]}")
        return found


def _outputs_here(job: Job, inputs: np.ndarray[Any, Any]) -> tuple[str, np.ndarray[Any, Any]]:
    """What computed here, and its outputs of each input. Raises RuntimeRefusal, MissingExtra."""
    import numpy as np

    from edgevit.bundle import Bundle
    from edgevit.runtimes import runtime

    assert job.folder is not None
    bundle = Bundle.load(job.folder)
    found = runtime(bundle.manifest["target"])
    session = found.open(bundle.engine)
    return found.checked_by, np.concatenate([session.run(one[None]) for one in inputs]).astype(np.float32)


@contextmanager
def held(device: Device, jobs: Sequence[Job]) -> Iterator[InApp]:
    """Reach the phone and its runner. Raises MeasureError."""
    transport = cast("PhoneTransport", device.transport)
    launcher = transport.launcher()
    for job in jobs:
        if job.runner not in launcher.runners or job.folder is None:
            raise MeasureError(
                f"{job.bundle}: runner {job.runner!r} is none of {device.name}: export for "
                f"{' or '.join(launcher.runners)}"
            )
    with (
        session_lock(transport.phone),
        transport.connect(),
        tempfile.TemporaryDirectory(prefix="edgevit-app-") as folder,
    ):
        session = InApp(device.name, launcher, jobs, Path(folder), transport.stand_in())
        session.open()
        yield session

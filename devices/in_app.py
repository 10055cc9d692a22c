"""A benchmark's session in the runner app of an iPhone or iPad: files pushed, one launch a round, its record pulled.

The app is written by `edgevit.devices.app_project`; its Job.swift says what it is asked and answers. Each launch is a
process of its own that reads Documents/edgevit/job.json, does it, writes record.json beside it, and ends.
"""

from __future__ import annotations

import json
import math
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgevit.devices.conditions import UNKNOWN
from edgevit.devices.config import Device
from edgevit.devices.plan import IN_APP, Job, Setup, pseudo_random
from edgevit.devices.rounds import checked
from edgevit.devices.transport import PhoneTransport
from edgevit.devices.tree import tree_name
from edgevit.errors import MeasureError

if TYPE_CHECKING:
    import numpy as np

WORK = "Documents/edgevit"
"""In the app's container; everything that is pushed lies there."""
SCHEMA = 1
"""Of jobs and records."""
INPUTS = 2
"""Inputs on which a device's outputs are compared with what the engine computes here."""
FAR = 0.1
"""Outputs that differ by more, relative: the device computes something else. float16 is within 0.02."""
LAUNCH_S = 120.0
"""Seconds a launch without measuring may take: an app that starts, and the first compilation of a model."""
HOT = ("serious", "critical")
"""Thermal states in which the system slows down."""


class InApp:
    """The app that is held: see `edgevit.devices.session.Session`."""

    def __init__(self, name: str, transport: PhoneTransport, jobs: Sequence[Job], folder: Path, fake: bool) -> None:
        self.name = name
        self.transport = transport
        self.jobs = {job.bundle: job for job in jobs}
        self.folder = folder
        self.fake = fake
        self.facts: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.hot: Counter[str] = Counter()
        self.there = b""  # the input that was pushed last: every round has the same

    def open(self) -> None:
        """Ask the app what it is, and push the engines that are not there. Raises MeasureError."""
        trees = {tree_name(job.files): job for job in self.jobs.values()}
        self.facts = self._ask({"kind": "about", "trees": list(trees)}, LAUNCH_S, f"device {self.name}")
        if self.facts.get("low_power"):
            raise MeasureError(f"device {self.name} saves power: turn low power mode off in Settings, Battery")
        for tree, job in trees.items():
            if tree not in self.facts.get("present", ()):
                self._push(job, tree)

    def _push(self, job: Job, tree: str) -> None:
        """The engine's files, and last the mark that they are whole."""
        assert job.folder is not None
        place = f"{WORK}/trees/{tree}"
        for name in job.files:
            self.transport.push(job.folder / name, f"{place}/{name}")
        mark = self.folder / "whole"
        mark.write_text("")
        self.transport.push(mark, f"{place}.whole")

    def device(self) -> dict[str, Any]:
        """What it is, as the system tells the app."""
        about = {key: self.facts.get(key) or UNKNOWN for key in ("model", "os", "arch")}
        return {"name": self.name, **about, "cpu": about["model"], "cores": self.facts.get("cores")}

    def state(self) -> dict[str, Any]:
        """Threads are the system's own; there is no load average."""
        kept = {key: self.facts.get(key) for key in ("thermal", "battery", "charging")}
        return {"usable_cores": self.facts.get("cores") or 1, "loadavg": None, **kept}

    def prepare(self, setup: Setup) -> None:
        """See that every engine loads there and computes what it does here. Raises MeasureError."""
        if setup.hold:
            raise MeasureError(
                f"device {self.name}: nothing holds {', '.join(setup.hold)} of an iPhone: leave --lock-clocks and "
                "--power-mode out"
            )
        for job in self.jobs.values():
            self._check(job)

    def end(self) -> dict[str, Any]:
        """What the record says besides the rounds."""
        notes = [
            f"{name}: {count} rounds began or ended while the device was hot ({'/'.join(HOT)}): let it cool, and again"
            for name, count in sorted(self.hot.items())
        ]
        return {"app": self.facts, "outputs": self.outputs, "notes": notes}

    def engine(self, job: Job) -> str:
        """Where it was put."""
        assert job.folder is not None
        return f"{WORK}/trees/{tree_name(job.files)}/{job.engine.relative_to(job.folder).as_posix()}"

    def run(self, job: Mapping[str, Any], place: str, limit_s: float) -> dict[str, Any]:
        """In a fresh launch of the app."""
        bundle = place.partition(":")[0]
        self._input(pseudo_random(job["input"]["shape"], job["seed"]))
        found = self._ask({**job, "kind": "round"}, limit_s, place)
        record = _round(dict(job), found, self.fake, place)
        if set(HOT) & {found.get("thermal_before"), found.get("thermal_after")}:
            self.hot[bundle] += 1
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
        got = np.array(found.get("outputs"), np.float32)
        if got.shape != want.shape:
            raise MeasureError(f"{place}: outputs of {got.shape} came back, {want.shape} were expected")
        off = float((np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1).clip(1e-30)).max())
        if not off <= FAR:
            raise MeasureError(
                f"{place}: its outputs on {self.name} differ from {by} by {off:.2g} of their size: it computes "
                "something else; try other compute units (--option units=cpuOnly) or fp32"
            )
        self.outputs[job.bundle] = {"relative_diff": off, "inputs": INPUTS, "against": by}

    def _input(self, values: np.ndarray[Any, Any]) -> None:
        """Put the float32 values where the app reads them."""
        data = values.astype("<f4").tobytes()
        if data == self.there:
            return
        path = self.folder / "input.f32"
        path.write_bytes(data)
        self.transport.push(path, f"{WORK}/input.f32")
        self.there = data

    def _ask(self, job: Mapping[str, Any], limit_s: float, place: str) -> dict[str, Any]:
        """What one launch of the app answers. Raises MeasureError."""
        asked = {"schema": SCHEMA, "id": uuid.uuid4().hex, **job}
        todo, record = self.folder / "job.json", self.folder / "record.json"
        todo.write_text(json.dumps(asked), "utf-8")
        self.transport.push(todo, f"{WORK}/job.json")
        said = self.transport.run(["--job", f"{WORK}/job.json"], timeout_s=limit_s)
        record.unlink(missing_ok=True)
        try:
            self.transport.pull(f"{WORK}/record.json", record)
            found: dict[str, Any] = json.loads(record.read_text("utf-8"))
        except (MeasureError, OSError, ValueError) as error:
            raise MeasureError(
                f"{place}: the app left no record ({said.last_line}): is it unlocked? {error}"
            ) from error
        if not isinstance(found, dict) or found.get("id") != asked["id"]:
            raise MeasureError(f"{place}: the app left the record of another launch ({said.last_line}): was it ended?")
        if found.get("schema") != SCHEMA:
            raise MeasureError(
                f"{place}: the app speaks schema {found.get('schema')}, this is {SCHEMA}: write it again"
            )
        if "error" in found:
            raise MeasureError(f"{place}: the app says: {str(found['error'])[:500]}")
        return found


def _round(job: dict[str, Any], found: dict[str, Any], fake: bool, place: str) -> dict[str, Any]:
    """The app's answer as a round's record. Raises MeasureError."""
    record = {**found, "fake": fake, "runner": job["runner"], "job": job, "threads": 0}
    try:
        numbers = [record[key] for key in ("load_ms", "first_ms", "peak_memory_bytes")] + [record["warmup"]["seconds"]]
        usual = all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
    except (KeyError, TypeError) as error:
        raise MeasureError(f"{place}: the app's record lacks {error}: write the app again") from error
    if not usual:
        raise MeasureError(f"{place}: the app's record holds numbers that are none: {numbers}")
    return checked(record, place)


def _outputs_here(job: Job, inputs: np.ndarray[Any, Any]) -> tuple[str, np.ndarray[Any, Any]]:
    """What computed here, and its outputs of each input. Raises RuntimeRefusal, MissingExtra."""
    import numpy as np

    from edgevit.bundle import Bundle
    from edgevit.runtimes import runtime

    assert job.folder is not None
    found = runtime(job.runner)
    session = found.open(Bundle.load(job.folder).engine)
    return found.checked_by, np.concatenate([session.run(one[None]) for one in inputs]).astype(np.float32)


@contextmanager
def held(device: Device, jobs: Sequence[Job]) -> Iterator[InApp]:
    """Reach the device and its runner app. Raises MeasureError."""
    transport = cast("PhoneTransport", device.transport)
    for job in jobs:
        if job.runner not in IN_APP or job.folder is None:
            raise MeasureError(
                f"{job.bundle}: runner {job.runner!r} does not run in an app: export for {' or '.join(IN_APP)}"
            )
    with transport.connect(), tempfile.TemporaryDirectory(prefix="edgevit-app-") as folder:
        session = InApp(device.name, transport, jobs, Path(folder), transport.stand_in())
        session.open()
        yield session

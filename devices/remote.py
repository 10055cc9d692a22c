"""A benchmark's session on another device: what is sent there, and the talk with `edgevit.devices.agent`."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from edgevit import errors
from edgevit.devices.collect import COLLECTORS
from edgevit.devices.config import Device
from edgevit.devices.guards import GUARDS
from edgevit.devices.plan import HERE, RUNNERS, Job, Setup
from edgevit.devices.rounds import last_line
from edgevit.devices.transport import PythonTransport
from edgevit.devices.tree import File, place_tree
from edgevit.errors import MeasureError

BEAT_S = 15.0
"""Seconds between two signs of life; the device gives up after `edgevit.devices.agent.SILENCE_S`."""
ANSWER_S = 60.0
"""Seconds that the device may need to answer, beyond what a round may take."""

GUARD_S = 180.0
"""Seconds that a guard may need, to set or to restore."""

MODULES = (
    *("agent", "conditions", "lock", "probe", "rounds"),
    *("guards", "guard_system", *(path.rpartition(".")[2] for path in GUARDS.values())),
    *("trtexec", "trtexec_log", "trt_layers", "engine_cache"),
    *("collect", "sensors", "energy", *(path.rpartition(".")[2] for path in COLLECTORS.values())),
)
"""What the session on the device is made of."""
ALONE = tuple(name for name in RUNNERS if name != "web")
"""Runners that are single files, or need of edgevit only MODULES; that of `web` needs a browser beside it."""
START = (
    "import sys; tree = sys.argv[1]; sys.path[:] = [tree, *filter(None, sys.path)]; "
    "from edgevit.devices.agent import main; sys.exit(main(sys.argv[2:]))"
)


def code() -> dict[str, File]:
    """The files of the session, and of every runner that is one file: name on the device → file here."""
    empty = File.of(HERE / "__init__.py")  # a docstring alone
    files = {"edgevit/__init__.py": empty, "edgevit/devices/__init__.py": empty}
    files["edgevit/errors.py"] = File.of(Path(errors.__file__))
    for name in MODULES:
        files[f"edgevit/devices/{name}.py"] = File.of(HERE / f"{name}.py")
    for name in ALONE:
        files[f"runners/{RUNNERS[name].name}"] = File.of(RUNNERS[name])
    return files


class There:
    """A device that is held: see `edgevit.devices.session.Session`."""

    def __init__(self, name: str, agent: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        self.name = name
        self.engines: dict[str, str] = {}
        self.about: dict[str, Any] = {}
        self._agent = agent
        self._stderr = stderr
        self._buffer = b""
        self._writing = threading.Lock()

    def device(self) -> dict[str, Any]:
        """What it is, and how it is called here."""
        return {"name": self.name, **self.ask({"do": "device"})}

    def state(self) -> dict[str, Any]:
        """The state it is in."""
        found: dict[str, Any] = self.ask({"do": "state"})
        return found

    def engine(self, job: Job) -> str:
        """Where it was put."""
        return self.engines[job.bundle]

    def run(self, job: Mapping[str, Any], place: str, limit_s: float) -> dict[str, Any]:
        """In a fresh process of the device's Python."""
        runner = RUNNERS[job["runner"]].name
        try:
            request = {"do": "round", "job": job, "runner": runner, "place": place, "limit_s": limit_s}
            found: dict[str, Any] = self.ask(request, limit_s, place)
        except TypeError as error:
            raise MeasureError(f"{place}: the options {job['options']} cannot be written as JSON: {error}") from error
        return found

    def prepare(self, setup: Setup) -> None:
        """Hold what is wished, start the collectors, and see what the idle device draws."""
        if setup.hold:
            limit_s = GUARD_S * len(setup.hold)
            self.about["held"] = self.ask({"do": "hold", "wishes": dict(setup.hold)}, limit_s)
        if setup.collect:
            self.about["collectors"] = self.ask({"do": "collect"})
            self.about["idle_w"] = self.ask({"do": "idle", "seconds": setup.idle_s}, setup.idle_s)

    def end(self) -> dict[str, Any]:
        """Give the device back: what was prepared, what was restored. Raises MeasureError where that failed."""
        self.about |= self.ask({"do": "end"}, GUARD_S * len(GUARDS))
        left = {name: text for name, text in self.about["restored"].items() if text}
        if left:
            told = "; ".join(f"{name}: {text}" for name, text in left.items())
            raise MeasureError(f"device {self.name} is not as it was found ({told}): the next session tries again")
        return self.about

    def ask(self, request: Mapping[str, Any], limit_s: float = 0, place: str = "") -> Any:
        """The answer to one request. Raises MeasureError: the device's own, or that the link broke."""
        self._write(json.dumps(request).encode() + b"\n", place)
        message = self.read(limit_s + ANSWER_S, place)
        if "error" in message:
            text = message["error"]
            raise MeasureError(text if place and text.startswith(place) else f"device {self.name}: {text}")
        return message["answer"]

    def beat(self) -> None:
        """Say that this side is here."""
        with suppress(OSError, ValueError), self._writing:
            cast("IO[bytes]", self._agent.stdin).write(b"\n")
            cast("IO[bytes]", self._agent.stdin).flush()

    def _write(self, line: bytes, place: str) -> None:
        try:
            with self._writing:
                cast("IO[bytes]", self._agent.stdin).write(line)
                cast("IO[bytes]", self._agent.stdin).flush()
        except OSError:
            self._lost(place)

    def read(self, limit_s: float, place: str = "") -> dict[str, Any]:
        """The next message. Raises MeasureError."""
        source = cast("IO[bytes]", self._agent.stdout).fileno()
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([source], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(source, 1 << 16) if ready else b""
            if not piece:
                self._lost(place)
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError as error:
            said = line[:80].decode("utf-8", "replace")
            raise MeasureError(
                f"device {self.name} said {said!r} where its session answers: its login or its Python prints "
                "something of its own; make it silent for commands that are not interactive"
            ) from error
        return found

    def _lost(self, place: str) -> NoReturn:
        """The link is gone: say so."""
        with suppress(subprocess.TimeoutExpired):
            self._agent.wait(2)
        self._stderr.seek(0)
        said = last_line(self._stderr.read()) or "no answer"
        raise MeasureError(
            f"{place + ': ' if place else ''}the link to device {self.name} broke ({said}); the device ends the round "
            "and gives itself back on its own; check the network, then profile again"
        )


@contextmanager
def there(device: Device, jobs: Sequence[Job] = ()) -> Iterator[There]:
    """Hold a device, with the engines of the jobs on it. Raises MeasureError, which names the step that failed.

    Left without `There.end`, the device gives itself back all the same; only nobody hears of it.
    """
    transport = _with_python(device)
    for job in jobs:
        if job.runner not in ALONE:
            raise MeasureError(
                f"{job.bundle}: runner {job.runner!r} measures in a browser: run it without --device, or on a device "
                "of transport browser"
            )
    with transport.connect(), tempfile.TemporaryFile() as stderr:
        tree = place_tree(transport, code())
        engines = {job.bundle: _place_engine(transport, job) for job in jobs}
        command = transport.command([transport.python, "-c", START, tree, transport.work])
        # In a session of its own: Ctrl-C is for us, and the device must first be left as it was found.
        agent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )
        found = There(device.name, agent, stderr)
        over = threading.Event()
        threading.Thread(target=_beat, args=(found, over), daemon=True).start()
        try:
            first = found.read(ANSWER_S)
            if "error" in first:
                raise MeasureError(f"device {device.name}: {first['error']}")
            found.engines.update(engines)
            yield found
        finally:
            over.set()
            _end(agent)


def _beat(session: There, over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        session.beat()


def _end(agent: subprocess.Popen[bytes]) -> None:
    """Close its input, which ends the session there, and wait until the device is as it was found."""
    with suppress(OSError):
        cast("IO[bytes]", agent.stdin).close()
    try:
        agent.wait(30 + GUARD_S)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()
    cast("IO[bytes]", agent.stdout).close()


def _with_python(device: Device) -> PythonTransport:
    """The device's transport. Raises MeasureError where no Python can run behind it."""
    if not (hasattr(device.transport, "python") and hasattr(device.transport, "work")):
        raise MeasureError(f"device {device.name}: no Python runs behind transport {device.kind}")
    return cast("PythonTransport", device.transport)


def _place_engine(transport: PythonTransport, job: Job) -> str:
    """Send a job's engine; its path on the device."""
    if not job.files or job.folder is None:
        if not Path(job.engine).is_file():
            raise MeasureError(f"{job.bundle}: engine file {job.engine} does not exist")
        return f"{place_tree(transport, {Path(job.engine).name: File.of(Path(job.engine))})}/{Path(job.engine).name}"
    files = {name: File(job.folder / name, digest) for name, digest in job.files.items()}
    return f"{place_tree(transport, files)}/{Path(job.engine).relative_to(job.folder).as_posix()}"

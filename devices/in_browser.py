"""A benchmark's session in a person's browser: what it is asked round by round, and what its answers are worth."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from edgevit.devices.conditions import UNKNOWN
from edgevit.devices.page_server import Page, PageGone, PageServer
from edgevit.devices.plan import Job, Setup, pseudo_random
from edgevit.devices.rounds import checked, is_number
from edgevit.devices.runner_web import as_record
from edgevit.devices.transport import Tell
from edgevit.devices.web_server import Job as Answer
from edgevit.errors import MeasureError

if TYPE_CHECKING:
    import numpy as np

TRIES = 5
"""So often is a round begun again whose page was hidden or closed."""
INPUTS = 4
"""Inputs on which a browser's outputs are compared with ONNX Runtime's here."""
FAR = 0.1
"""Outputs that differ by more, relative, on most inputs: the browser computes something else."""
CHECK_S = 600.0
COARSE = 1 / 20
"""A clock whose step is a larger share of an inference is too coarse for single ones."""
NOTABLE = 1e-2
"""Outputs that differ by more are told; float16 is within it."""


class InBrowser:
    """A browser that is held: see `edgevit.devices.session.Session`. jobs: in the order of the server's bundles."""

    def __init__(
        self, name: str, server: PageServer, jobs: Sequence[Job], backend: str, wait_s: float, tell: Tell
    ) -> None:
        self.name = name
        self.server = server
        self.backend = backend
        self.wait_s = wait_s
        self.tell = tell
        self.jobs = list(jobs)
        self.engines: dict[str, dict[str, Any]] = {}  # path → what the page said of it
        self.outputs: dict[str, Any] = {}
        self.rejected: Counter[str] = Counter()
        self.coarse: dict[str, float] = {}
        self.page: Page

    def open(self) -> None:
        """Wait for a browser. Raises MeasureError."""
        self.tell(f"open {self.server.url} in the browser of device {self.name}, and leave the page in front")
        self._next_page(None)

    def _next_page(self, old: Page | None) -> None:
        found = self.server.wait_for(lambda: self.server.page not in (None, old), self.wait_s)
        page = self.server.page
        if not found or page is None:
            again = " again" if old else ""
            raise MeasureError(
                f"device {self.name}: nobody opened the page{again} within {self.wait_s:g} s; does the device reach "
                f"{self.server.url.split('/')[2]}? wait_s of devices.toml is how long it waits"
            )
        self.page = page

    @property
    def facts(self) -> dict[str, Any]:
        """What the browser says of itself."""
        wanted = ("user_agent", "model", "os", "arch", "cores", "isolated", "simd", "webgpu")
        return {key: self.page.facts.get(key) for key in wanted}

    def device(self) -> dict[str, Any]:
        """What it is, as far as a browser tells."""
        facts = self.facts
        about = {key: facts[key] or UNKNOWN for key in ("model", "os", "arch", "cores")}
        return {"name": self.name, **about, "cpu": UNKNOWN, "browser": facts["user_agent"] or UNKNOWN}

    def state(self) -> dict[str, Any]:
        """usable_cores: the threads that the page takes by itself."""
        threads = max((found["threads"] for found in self.engines.values()), default=1)
        return {"usable_cores": threads, "isolated": self.facts["isolated"], "loadavg": None}

    def prepare(self, setup: Setup) -> None:
        """See that every engine loads there and computes what it does here. Raises MeasureError."""
        if setup.hold:
            raise MeasureError(
                f"device {self.name}: nothing holds {', '.join(setup.hold)} of a browser: leave --lock-clocks and "
                "--power-mode out"
            )
        for job in self.jobs:
            self._check(job)

    def end(self) -> dict[str, Any]:
        """What the record says besides the rounds."""
        notes = []
        if not self.facts["isolated"]:
            notes.append("the page was not isolated (no https): one thread, and a coarse clock")
        if self.rejected:
            told = ", ".join(f"{count} whose page was {why}" for why, count in sorted(self.rejected.items()))
            notes.append(f"rounds that were rejected and measured again: {told}")
        for name, found in self.outputs.items():
            if found["relative_diff"] > NOTABLE:
                notes.append(
                    f"{name}: its outputs there differ by {found['relative_diff']:.2g} from {found['against']}"
                )
        for name, step in sorted(self.coarse.items()):
            notes.append(f"{name}: the browser's clock steps by {step:g} ms: single inferences are coarse")
        return {"browser": self.facts, "outputs": self.outputs, "rejected_rounds": dict(self.rejected), "notes": notes}

    def engine(self, job: Job) -> str:
        """Where it is here."""
        return str(job.engine)

    def run(self, job: Mapping[str, Any], place: str, limit_s: float) -> dict[str, Any]:
        """In a fresh worker of the page; again, where the page was hidden or closed."""
        plan = {key: job[key] for key in ("warmup_s", "min_samples", "min_seconds", "max_seconds")}
        index = [str(known.engine) for known in self.jobs].index(job["engine"])
        head = {"kind": "round", "bundle": index, "backend": self.backend, "threads": job["options"]["threads"], **plan}
        body = pseudo_random(job["input"]["shape"], job["seed"]).tobytes()
        for _ in range(TRIES):
            found, _ = self._ask({**head, "text": place}, body, limit_s, place)
            if not found.get("hidden"):
                return {**self._record(job, found, place), "loadavg": None}
            self.rejected["hidden"] += 1
            self.tell(f"{place}: the page was hidden, so this round does not count; bring it to the front")
        raise MeasureError(
            f"{place}: the page was hidden in each of {TRIES} tries: leave it in front and the screen on, then profile "
            "again"
        )

    def _record(self, job: Mapping[str, Any], found: dict[str, Any], place: str) -> dict[str, Any]:
        """The page's answer as a round's record. Raises MeasureError."""
        record = _round(job, found, str(self.page.facts.get("user_agent")), place)
        before = self.engines[job["engine"]]["backend"]
        if record["placement"] != before:
            raise MeasureError(
                f"{place}: it ran on {record['placement']} ({found['reason']}), and on {before} before: two that "
                "must not be mixed; set backend=wasm for this device"
            )
        if record["tick_ms"] > COARSE * median(record["samples_ms"]):
            name = place.partition(":")[0]
            self.coarse[name] = max(record["tick_ms"], self.coarse.get(name, 0.0))
        return record

    def _check(self, job: Job) -> None:
        """Load an engine there and compare its outputs with ONNX Runtime's here, on noise."""
        import numpy as np

        place, index = f"{job.bundle}: the check before the first round", self.jobs.index(job)
        inputs = pseudo_random([INPUTS, *job.input_shape[1:]], 0)
        head = {"kind": "check", "bundle": index, "backend": self.backend, "threads": 0, "count": INPUTS}
        found, values = self._ask({**head, "text": f"{job.bundle}: checking"}, inputs.tobytes(), CHECK_S, place)
        if not isinstance(found.get("threads"), int) or not isinstance(found.get("backend"), str):
            raise MeasureError(f"{place}: the page posted no outputs: reload it")
        version, want = _outputs_here(job, inputs)
        if len(values) != want.nbytes:
            raise MeasureError(f"{place}: the page gave {len(values)} bytes of outputs, {want.nbytes} were expected")
        got = np.frombuffer(values, np.float32).reshape(INPUTS, -1)
        want = want.reshape(INPUTS, -1)
        off = float(np.median(np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1).clip(1e-30)))
        if not off <= FAR:
            raise MeasureError(
                f"{place}: on {found['backend']} ({found['reason']}) its outputs differ from ONNX Runtime's here by "
                f"{off:.2g} of their size: that browser computes something else; try backend=wasm for this device"
            )
        self.engines[str(job.engine)] = found
        self.outputs[job.bundle] = {"relative_diff": off, "inputs": INPUTS, "against": f"onnxruntime {version} here"}

    def _ask(self, head: dict[str, Any], body: bytes, limit_s: float, place: str) -> Answer:
        """The page's answer, from another page where this one goes away. Raises MeasureError."""
        for _ in range(TRIES):
            try:
                answer = self.server.ask(self.page, (head, body), limit_s)
            except PageGone:
                if head["kind"] == "round":
                    self.rejected["closed"] += 1
                self.tell(f"{place}: the page was closed; what was measured is kept, open {self.server.url} again")
                self._next_page(self.page)
                continue
            if answer is None:
                raise MeasureError(
                    f"{place}: no answer of the page after {limit_s:.0f} s: was it hidden, or the screen off?"
                )
            if "error" in answer[0]:
                raise MeasureError(f"{place}: the browser says: {str(answer[0]['error'])[:500]}")
            return answer
        raise MeasureError(f"{place}: the page was closed in each of {TRIES} tries; too little memory there?")


def _round(job: Mapping[str, Any], found: dict[str, Any], browser: str, place: str) -> dict[str, Any]:
    """What a page posted, as a record that has what a round needs. Raises MeasureError."""
    try:
        if 0 in found["samples_ms"]:
            raise MeasureError(
                f"{place}: an inference is shorter than the step of the browser's clock ({found['tick_ms']} ms): "
                "serve the page so that it is isolated, which sharpens it"
            )
        record = checked(as_record(dict(job), found, browser, None), place)
    except (KeyError, TypeError) as error:
        raise MeasureError(f"{place}: the page posted no round ({error!r}): reload it") from error
    if not is_number(record["tick_ms"]):
        raise MeasureError(f"{place}: the page posted a round without the step of its clock: reload it")
    return record


def _outputs_here(job: Job, inputs: np.ndarray[Any, Any]) -> tuple[str, np.ndarray[Any, Any]]:
    """ONNX Runtime's version, and what it computes of each input. Raises RuntimeRefusal, MissingExtra."""
    import numpy as np

    from edgevit.runtimes.ort import OrtSession, import_ort
    from edgevit.stages import Engine, InputSpec

    assert job.folder is not None
    version, name = str(import_ort().__version__), json.loads((job.folder / "engine.json").read_text("utf-8"))["model"]
    height, width = job.input_shape[2:]
    sizes = InputSpec(1, height, width, job.input_name)
    session = OrtSession(Engine(job.folder, "ort", version, "", name, (name,), sizes, job.options), None)
    outputs = [session.run(one[None]) for one in inputs]
    return version, np.concatenate(outputs).astype(np.float32)

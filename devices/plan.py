"""What to measure and how long: the two inputs of `edgevit.devices.bench.profile`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import MeasureError

if TYPE_CHECKING:
    import numpy as np

HERE = Path(__file__).resolve().parent
RUNNERS = {
    "ort": HERE / "runner_ort.py",
    "openvino": HERE / "runner_openvino.py",
    "executorch": HERE / "runner_executorch.py",
    "trtexec": HERE / "runner_trtexec.py",
    "web": HERE / "runner_web.py",
    "fake": HERE / "runner_fake.py",
}
"""Runner name → the file a fresh Python process runs."""
IN_APP = ("coreml", "coreai")
"""Runners that are part of an app on the device (`edgevit.devices.in_app`)."""
BUILDERS = ("trtexec",)
"""Runners that build the engine on the device, once, before the rounds."""


@dataclass(frozen=True)
class Job:
    """One engine to measure.

    Attributes:
        bundle: the name it has in the results. runner: a key of `RUNNERS`. engine: the file the runtime
        opens. options: the runner's options, JSON-able: `session_config` (ort), `config` (openvino),
        `partition` (executorch), `transfers` (trtexec), `threads` (all). input_name: the engine's one input.
        input_shape: static, batch first. folder, files: where the engine's files are and what they are (relative
        name → sha256), to send them to a device; none: the engine is its one file.
    """

    bundle: str
    runner: str
    engine: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    input_name: str = "images"
    input_shape: tuple[int, ...] = (1, 3, 224, 224)
    folder: Path | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.runner not in (*RUNNERS, *IN_APP):
            raise MeasureError(f"{self.bundle}: no runner {self.runner!r}; there are {', '.join((*RUNNERS, *IN_APP))}")
        if not self.input_shape or not all(isinstance(s, int) and s > 0 for s in self.input_shape):
            raise MeasureError(f"{self.bundle}: input shape {self.input_shape} must be positive integers")


@dataclass(frozen=True)
class Setup:
    """What a session on a device does before the first round.

    Attributes:
        hold: guard (`edgevit.devices.guards.GUARDS`) → what it holds: a power mode's name, a governor, "on".
            `clocks`: jetson_clocks where that is, else the governor `performance`.
        collect: start the collectors that the device has.
        idle_s: seconds of the idle device, for the power that is subtracted.
    """

    hold: Mapping[str, str] = field(default_factory=dict)
    collect: bool = True
    idle_s: float = 10.0


@dataclass(frozen=True)
class BenchPlan:
    """How long and how often.

    Attributes:
        rounds: fresh processes of each bundle. With `against`, two rounds of each make one A B B A block, so the
            default is six blocks; an odd number ends in half a block (A B), which has no A/A pair. With less than five
            rounds or six blocks, intervals are Student's t, and wide.
        warmup_s: warm-up goes on for this long and then until it is stable, at most `max_seconds`. 0: none.
        min_samples: samples of a round at least, unless `max_seconds` comes first.
        min_seconds: seconds of sampling of a round at least.
        max_seconds: seconds of sampling of a round at most.
        threads: None: what the job's own options say, else every core this process may use.
        seed: of the input tensor and of the bootstrap.
        turn: inferences after which the two sides of a comparison take turns, within a pair of rounds that are there at
            once (`edgevit.devices.pair`). 0: one round after the other.

    With the defaults a bundle gets 12 x 64 = 768 samples or more, enough for p99, and two bundles of 6 to 25
    ms take 24 rounds of about 2.5 s plus their load time.
    """

    rounds: int = 12
    warmup_s: float = 0.5
    min_samples: int = 64
    min_seconds: float = 1.5
    max_seconds: float = 20.0
    threads: int | None = None
    seed: int = 0
    turn: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("rounds", self.rounds, 1),
            ("min_samples", self.min_samples, 1),
            ("threads", self.threads, 1),
            ("turn", self.turn, 0),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise MeasureError(f"{name}={value!r} must be a whole number of {least} or more")
        for name, seconds in (("warmup_s", self.warmup_s), ("min_seconds", self.min_seconds)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise MeasureError(f"{name}={seconds!r} must be 0 or more seconds")
        if not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            raise MeasureError(f"max_seconds={self.max_seconds!r} must be more than 0 seconds")
        if self.max_seconds < max(self.min_seconds, self.warmup_s):
            raise MeasureError(
                f"max_seconds={self.max_seconds} is below min_seconds={self.min_seconds} or "
                f"warmup_s={self.warmup_s}: raise max_seconds, or lower the other"
            )


def pseudo_random(shape: Sequence[int], seed: int) -> np.ndarray[Any, Any]:
    """The runners' input: standard normal float32."""
    import numpy as np

    return np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)

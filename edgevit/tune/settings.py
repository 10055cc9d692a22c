"""What is asked of a study, and the command that rebuilds one of its points."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import EdgeVitError
from edgevit.model_settings import ModelSettings, model_keywords
from edgevit.pipeline import ExportSettings
from edgevit.tune.goal import Goal
from edgevit.tune.suggest import GENERATION

if TYPE_CHECKING:
    from edgevit.tune.space import Point


@dataclass(frozen=True, kw_only=True)
class TuneSettings(ModelSettings):
    """Everything `edgevit tune` needs; impossible combinations are refused before anything is loaded."""

    target: str
    calib: Path
    eval: Path
    goal: Goal
    out: Path = Path("study")
    holdout: Path | None = None  # None: half of eval
    device: str = "local"
    budget_s: float = 1800.0
    trials: int | None = None
    storage: str | None = None  # None: SQLite in the folder
    seed: int = 0
    generation: int = GENERATION
    workers: int = 1
    ray: str | None = None  # a cluster's address, or auto
    batch: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.budget_s) and self.budget_s > 0):
            raise EdgeVitError(f"--budget {self.budget_s:g}s must be more than 0, as in 30m, 90s or 2h")
        for name in ("trials", "generation", "workers", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EdgeVitError(f"--{name} {value} must be 1 or more")
        if self.ray and self.workers > 1:
            raise EdgeVitError(
                f"--ray and --workers {self.workers} exclude each other: Ray runs a worker on each node of its cluster"
            )
        if self.ray and "://" in self.ray:
            raise EdgeVitError(
                f"--ray {self.ray} is not HOST:PORT or auto: make this machine a node of the cluster with "
                "`ray start --address=HOST:PORT`, and give --ray auto"
            )

    def fixed(self) -> dict[str, Any]:
        """What must not change between two calls of one study."""
        shape = "x".join(map(str, self.input_size)) if self.input_size else None
        return {
            "model": self.model,
            "target": self.target,
            "device": self.device,
            "calib": str(self.calib),
            "eval": str(self.eval),
            "holdout": str(self.holdout) if self.holdout else None,
            "goal": str(self.goal),
            "seed": self.seed,
            "generation": self.generation,
            "arch": self.arch,
            "input_size": shape,
            "batch": self.batch,
            "preprocess": str(self.preprocess) if self.preprocess else None,
            "keep": list(self.keep) if self.keep else None,
        }

    def anywhere(self) -> TuneSettings:
        """The same with whole paths, for a process that started in another folder."""
        paths = ("calib", "eval", "holdout", "preprocess")
        whole = {name: path.absolute() for name in paths if (path := getattr(self, name))}
        model = str(Path(self.model).absolute()) if Path(self.model).exists() else self.model
        return replace(self, model=model, **whole)

    def export(self, point: Point, out: Path) -> ExportSettings:
        """The export of one point."""
        return ExportSettings(
            **model_keywords(self),
            target=self.target,
            out=out,
            reduce=point.reduce,
            precision=point.precision,
            calib=self.calib,
            batch=self.batch,
            options=point.options,
        )

    def command(self, point: Point, out: str) -> str:
        """The line that builds one point again."""
        flags: Mapping[str, Any] = {
            "--target": self.target,
            "--reduce": None if point.is_dense else point.reduce,
            "--precision": point.precision,
            "--calib": self.calib,
            "--arch": self.arch,
            "--input-size": "x".join(map(str, self.input_size)) if self.input_size else None,
            "--batch": self.batch if self.batch > 1 else None,
            "--preprocess": self.preprocess,
            "--keep": ",".join(f"{n:g}" for n in self.keep) if self.keep else None,
        }
        words = ["edgevit", "export", self.model]
        for flag, value in flags.items():
            words += [flag, str(value)] if value is not None else []
        for name, value in point.options.items():
            words += ["--option", f"{name}={value}"]
        words += ["--trust-pickle"] if self.trust_pickle else []
        return shlex.join([*words, "-o", out])

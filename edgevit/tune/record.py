"""The record of a study: trials in Optuna's storage, and what a study folder must be to go on.

A generation is enqueued as a whole, so what it holds does not depend on how many workers there are, or on who was
killed when. A trial that was running when its process died is marked failed and enqueued again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgevit.bundle import write_json
from edgevit.errors import EdgeVitError, missing_extra

if TYPE_CHECKING:
    from edgevit.tune.settings import TuneSettings
    from edgevit.tune.space import Space

TRIES = 3
"""Times a trial may take its process down before it counts as failed."""
STUDY = "study.json"


@dataclass(frozen=True)
class Job:
    """A trial to run. generation, slot: its place in the search, whoever runs it; tries: how often it was begun."""

    trial: int
    generation: int
    slot: int
    tries: int
    params: Mapping[str, Any]
    limit: float
    """Points of drop that it may not clearly exceed."""


@dataclass(frozen=True)
class Record:
    """A finished trial. stopped_at, why: the fidelity that ended it, and its reason; complete: neither."""

    trial: int
    generation: int
    slot: int
    tries: int
    params: Mapping[str, Any]
    reduce: str
    precision: str
    options: Mapping[str, str]
    state: Literal["complete", "pruned", "failed"]
    command: str
    stopped_at: str | None = None
    why: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def place(self) -> tuple[int, int]:
        """The order of the search."""
        return self.generation, self.slot

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.reduce} {self.precision}" if self.reduce != "none" else f"dense {self.precision}"

    def to_json(self) -> dict[str, Any]:
        """A line of trials.jsonl."""
        return asdict(self)


def import_optuna() -> Any:
    """The package, quiet. Raises MissingExtra."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise missing_extra("tune", error) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def check_folder(settings: TuneSettings) -> str | None:
    """The name of the study in `settings.out`; None where there is none. Raises EdgeVitError: it holds another."""
    path = settings.out / STUDY
    if not path.exists():
        if settings.out.exists() and not (settings.out.is_dir() and not any(settings.out.iterdir())):
            raise EdgeVitError(f"{settings.out} exists and holds no study; give another -o")
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        name = str(known["name"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EdgeVitError(f"{path} cannot be read ({error}); give another -o") from error
    for key, value in {**settings.fixed(), "storage": settings.storage}.items():
        if known.get(key) != value:
            raise EdgeVitError(
                f"{settings.out} holds a study with {key} {known.get(key)}, and this command says {value}; "
                "give the same, or another -o"
            )
    return name


@contextlib.contextmanager
def held(settings: TuneSettings) -> Iterator[str]:
    """The name of the study, a new one in an empty folder; one process at a time works on it. Raises EdgeVitError."""
    out, name = settings.out, check_folder(settings)
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EdgeVitError(f"another edgevit tune is at work in {out}: wait for it, or give another -o") from error
        if name is None:
            name = f"edgevit-{secrets.token_hex(6)}"
            fixed = settings.fixed()
            write_json(out / STUDY, {"schema": 1, "name": name, "storage": settings.storage, **fixed})
        yield name


class Trials:
    """The trials of one study."""

    def __init__(self, settings: TuneSettings, name: str, space: Space) -> None:
        optuna = import_optuna()
        directions = ["minimize"] * settings.goal.objectives
        try:
            storage = _storage(settings)
            self.study = optuna.create_study(
                study_name=name, storage=storage, directions=directions, load_if_exists=True
            )
        except Exception as error:  # whatever a database's driver raises
            text = " ".join(str(error).split())[:200]
            raise EdgeVitError(
                f"the study's storage {settings.storage or settings.out} cannot be opened: {text}"
            ) from error
        self.goal, self.optuna = settings.goal, optuna
        kinds = optuna.distributions.CategoricalDistribution
        self.distributions = {key: kinds(values) for key, values in space.choices().items()}
        self.running: dict[int, Any] = {}
        self._revive()

    def records(self) -> list[Record]:
        """Every finished trial, in the order of the search; those that will be tried again are not."""
        found = [t.user_attrs["record"] for t in self.study.get_trials(deepcopy=False) if "record" in t.user_attrs]
        return sorted((Record(**one) for one in found), key=lambda r: r.place)

    def waiting(self) -> int:
        """Enqueued trials that nobody has begun."""
        return len(self.study.get_trials(deepcopy=False, states=[self.optuna.trial.TrialState.WAITING]))

    def enqueue(self, generation: int, choices: Mapping[int, Mapping[str, Any]], limit: float) -> None:
        """Choices of one generation, by slot, to be begun in this order."""
        for slot, params in choices.items():
            self._enqueue(params, {"generation": generation, "slot": slot, "tries": 0, "limit": limit})

    def begin(self) -> Job:
        """The next waiting trial."""
        waiting = self.study.get_trials(deepcopy=False, states=[self.optuna.trial.TrialState.WAITING])
        params = min(waiting, key=lambda t: t.number).user_attrs["about"]["params"]
        trial = self.study.ask({key: self.distributions[key] for key in params})
        self.running[trial.number] = trial
        about = trial.user_attrs["about"]
        return Job(
            trial.number, about["generation"], about["slot"], about["tries"] + 1, about["params"], about["limit"]
        )

    def end(self, record: Record) -> None:
        """Keep what a trial found."""
        state = self.optuna.trial.TrialState
        trial = self.running.pop(record.trial)
        trial.set_user_attr("record", record.to_json())
        if record.state == "complete":
            self.study.tell(trial, self.goal.values(record))
        else:
            self.study.tell(trial, state=state.PRUNED if record.state == "pruned" else state.FAIL)

    def again(self, job: Job) -> None:
        """A trial whose worker died: failed, and enqueued once more."""
        self.study.tell(self.running.pop(job.trial), state=self.optuna.trial.TrialState.FAIL)
        about = {"generation": job.generation, "slot": job.slot, "tries": job.tries, "limit": job.limit}
        self._enqueue(job.params, about)

    @property
    def spent_s(self) -> float:
        """Seconds of all calls so far."""
        return float(self.study.user_attrs.get("spent_s", 0.0))

    @spent_s.setter
    def spent_s(self, seconds: float) -> None:
        self.study.set_user_attr("spent_s", seconds)

    def _enqueue(self, params: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.study.enqueue_trial(dict(params), user_attrs={"about": {**about, "params": dict(params)}})

    def _revive(self) -> None:
        """Trials that nobody is running, whatever they say: the folder's lock is ours."""
        state = self.optuna.trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=[state.RUNNING]):
            about = trial.user_attrs["about"]
            self.study.tell(trial.number, state=state.FAIL)
            if "record" not in trial.user_attrs:
                self._enqueue(about["params"], {**about, "tries": about["tries"] + 1})


def _storage(settings: TuneSettings) -> Any:
    """`--storage`: a database URL, or `journal:FILE`; by default SQLite in the folder."""
    optuna = import_optuna()
    given = settings.storage
    if given and given.startswith("journal:"):
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(given.removeprefix("journal:")))
    return optuna.storages.RDBStorage(given or f"sqlite:///{settings.out / 'study.db'}")

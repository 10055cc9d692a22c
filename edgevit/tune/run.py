"""The loop of a study: choose a generation, run it, until the budget or the space ends. It goes on where it stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from edgevit.progress import Progress, silent
from edgevit.tune.fidelity import bundle_name, record
from edgevit.tune.goal import front
from edgevit.tune.pool import Pool
from edgevit.tune.record import TRIES, Job, Record, Trials, check_folder, held, import_optuna
from edgevit.tune.result import Outcome, conclude, finalists
from edgevit.tune.settings import TuneSettings
from edgevit.tune.site import site
from edgevit.tune.suggest import suggest
from edgevit.tune.workshop import Workshop
from edgevit.tune.write import write_trials

FINAL_LOOKS = 2.5
"""Kept of the budget for each finalist's session: as long as so many trials are measured."""

ALWAYS = 2
"""Trials that no budget is too small for: dense, and dense in 8 bits."""


def tune(settings: TuneSettings, progress: Progress = silent) -> Outcome:
    """Search, and write the result into `settings.out`. Raises GateFailed (nothing fits), EdgeVitError."""
    import_optuna()
    check_folder(settings)
    with site(settings) as place:
        shop = Workshop(settings, place.meter, progress, place.evaluate)
        with held(settings) as name:
            trials = Trials(settings, name, shop.space)
            search = Search(shop, trials)
            stopped = search.run(lambda: place.pool(shop))
            return conclude(shop, trials.records(), stopped, lambda: search.spent_s)


@dataclass
class Search:
    """The driver: it alone touches the record."""

    shop: Workshop
    trials: Trials

    def __post_init__(self) -> None:
        self.started, self.before = time.monotonic(), self.trials.spent_s

    @property
    def spent_s(self) -> float:
        """Seconds of this call and those before."""
        return self.before + time.monotonic() - self.started

    def run(self, open_pool: Callable[[], Pool]) -> str:
        """Why it ended, in words."""
        with self.shop.turns.computing():
            self.shop.prepare()
        pool = open_pool()
        running: dict[int, Job] = {}
        try:
            while True:
                records = self.trials.records()
                ended = self._enough(records, len(running))
                if not ended and not running and not self.trials.waiting():
                    ended = self._choose(records)
                while not ended and pool.room and self.trials.waiting():
                    job = self.trials.begin()
                    pool.submit(job)
                    running[job.trial] = job
                    self._say(job, records)
                    ended = self._enough(records, len(running))
                if not running:
                    return ended or "every choice was tried"
                for job, found in pool.wait():
                    del running[job.trial]
                    self._end(job, found, running)
        finally:
            self.trials.spent_s = self.spent_s
            pool.close()

    def _choose(self, records: Sequence[Record]) -> str:
        """Enqueue the next generation, or what --trials cut off the last one; a reason where there is none."""
        settings = self.shop.settings
        last = max((r.generation for r in records), default=0)
        most = None if settings.trials is None else settings.trials - len(records)
        for number in (last, last + 1):
            earlier = [r for r in records if r.generation < number]
            choices = suggest(self.shop.space, settings.goal, earlier, number, settings.seed, settings.generation)
            done = {r.slot for r in records if r.generation == number}
            todo = [(slot, params) for slot, params in enumerate(choices) if slot not in done][:most]
            if todo:
                self.trials.enqueue(number, dict(todo), settings.goal.ceiling(earlier))
                return ""
        return "every choice was tried"

    def _enough(self, records: Sequence[Record], running: int) -> str:
        """Why no further trial is begun, or nothing."""
        settings = self.shop.settings
        if settings.trials is not None and len(records) + running >= settings.trials:
            return f"--trials {settings.trials}"
        if len(records) + running < ALWAYS:
            return ""
        long = [r.seconds for r in records if r.state == "complete"]
        usual = median(sum(s.values()) for s in long) if long else 0.0
        if self.spent_s + usual / 2 + self._end_s(records) > settings.budget_s:
            return f"--budget: {settings.budget_s / 60:g} minutes"
        return ""

    def _end_s(self, records: Sequence[Record]) -> float:
        """Seconds for the finalists' session, and for dense and the winner on the images held back."""
        shop = self.shop
        looks = [r.seconds["latency"] for r in records if r.state == "complete"]
        session = FINAL_LOOKS * median(looks) * len(finalists(shop.settings.goal, records)) if looks else 0.0
        return session + 2 * shop.baseline.seconds * len(shop.holdout) / len(shop.search)

    def _end(self, job: Job, found: Record | None, running: Iterable[int]) -> None:
        if found is None and job.tries < TRIES:
            self.trials.again(job)
            return
        if found is None:
            why = f"its process died {job.tries} times"
            found = record(self.shop, job, "failed", "a worker", why, {}, {})
        self.trials.end(found)
        self.trials.spent_s = self.spent_s
        records = self.trials.records()
        write_trials(self.shop.settings.out, records)
        self._clear(records, running)

    def _clear(self, records: Sequence[Record], running: Iterable[int]) -> None:
        """Only engines on the front are kept, and the unreduced ones; each of the others has its command."""
        kept = {*running, *(r.trial for r in front(records)), *(r.trial for r in records if r.reduce == "none")}
        names = {"dense", *map(bundle_name, kept)}
        for folder in (self.shop.settings.out / "bundles").iterdir():
            if folder.name not in names and not folder.name.startswith("."):  # a hidden one is being written
                shutil.rmtree(folder, ignore_errors=True)

    def _say(self, job: Job, records: Sequence[Record]) -> None:
        point = self.shop.space.point(job.params)
        self.shop.progress(f"trial {len(records) + 1}: {point}", 0, 0)

"""What whoever runs trials holds: the loaded model, the images, and the dense engine all are compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from edgevit.bundle import Bundle, staged, write_json
from edgevit.data import Dataset, read_dataset
from edgevit.errors import EdgeVitError, UnsupportedModel
from edgevit.evaluate import Evaluation, evaluate, scored
from edgevit.pipeline import finish, prepare
from edgevit.progress import Progress, silent
from edgevit.runtimes import runtime
from edgevit.tokens.schedule import parse_schedule
from edgevit.tune.flips import NORMAL, clearly_worse, drop_interval, smoothed_drop
from edgevit.tune.meter import check_times
from edgevit.tune.space import Point, space
from edgevit.tune.turns import Turns

if TYPE_CHECKING:
    import numpy as np
    import torch

    from edgevit.stages import ReducedModel, VitModel
    from edgevit.tune.meter import Meter
    from edgevit.tune.settings import TuneSettings

CHUNK = 16
"""Images between two looks at the flips."""
PROXY_IMAGES = 32
BASELINE = "baseline.json"
"""Answers of dense on the search images, in the study's folder."""
DIGITS = 4
"""Of a smoothed drop: what the number of threads may change is not in the record."""
BY_IMAGE = ("predicted", "ranks", "margins")
Part = Literal["search", "holdout"]


@dataclass(frozen=True)
class Paired:
    """A candidate and dense on the same images, up to where it was stopped. drop in points, with its 95 % interval.

    smoothed: the drop where near misses count in part, in points, and its standard error (`smoothed_drop`).
    """

    lost: int
    won: int
    images: int
    worse: bool
    smoothed: tuple[float, float]

    @property
    def drop(self) -> float:
        """Points of top-1 against dense."""
        return 100 * (self.lost - self.won) / self.images

    def to_json(self) -> dict[str, Any]:
        """Figures of a trial's record."""
        interval = list(drop_interval(self.lost, self.won, self.images))
        found = {"drop": self.drop, "drop_ci95": interval, "lost": self.lost, "won": self.won, "images": self.images}
        drop, error = self.smoothed
        near = [round(drop + side * error, DIGITS) for side in (0, -NORMAL, NORMAL)]
        return {**found, "smoothed_drop": near[0], "smoothed_drop_ci95": near[1:]}


def alone(shop: Workshop, bundle: Bundle, part: Part) -> Evaluation:
    """A bundle on all images of a part, in this process. Raises DataError, RuntimeRefusal."""
    return evaluate(bundle, getattr(shop, part), shop.progress)


class Workshop:
    """Loads once, then answers. Raises EdgeVitError for what a user must fix."""

    def __init__(
        self,
        settings: TuneSettings,
        meter: Meter,
        progress: Progress = silent,
        evaluator: Callable[[Workshop, Bundle, Part], Evaluation] = alone,
    ) -> None:
        self.settings, self.meter, self.progress, self.evaluator = settings, meter, progress, evaluator
        self.target = runtime(settings.target)
        self.target.version()
        check_times(meter, self.target)
        self.calib = read_dataset(settings.calib, progress)
        self.search, self.holdout = split(settings, progress)
        _apart(self.calib, "--calib", self.holdout, "--holdout" if settings.holdout else "the held back half of --eval")
        progress("load", 0, 0)
        self.checkpoint = settings.load(self.calib)
        self.vit, why_not = self._adapted()
        self.space = space(self.vit, why_not, self.target)
        self.turns = Turns(settings.out)

    def _adapted(self) -> tuple[VitModel | None, str]:
        from edgevit.adapters import adapt

        if self.checkpoint.module is None:
            return None, f"{self.checkpoint.name} is an exported program, whose blocks cannot be taken apart"
        try:
            return adapt(self.checkpoint.module), ""
        except UnsupportedModel as error:
            return None, str(error)

    @property
    def dense_point(self) -> Point:
        """What everything is compared with: all tokens, in the target's default precision."""
        return self.space.point(self.space.dense(self.space.precisions[0]))

    @cached_property
    def dense(self) -> Bundle:
        """Its engine, built by whoever comes first."""
        folder = self.settings.out / "bundles" / "dense"
        if not folder.exists():
            self.build(self.dense_point, "dense")
        return Bundle.load(folder)

    @cached_property
    def baseline(self) -> Evaluation:
        """Its predictions on the search images."""
        path = self.settings.out / BASELINE
        with suppress(OSError, ValueError, TypeError, LookupError):
            known = json.loads(path.read_text(encoding="utf-8"))
            if len(known["ranks"]) == len(self.search):
                return Evaluation(**{**known, **{key: tuple(known[key]) for key in BY_IMAGE}})
        found = self.evaluate(self.dense, "search")
        if found.top1 == 0:
            raise EdgeVitError(
                f"{self.checkpoint.name} gets none of the {found.images} search images of {self.settings.eval} right: "
                "check the labels and the preprocessing"
            )
        write_json(path, {key: getattr(found, key) for key in ("bundle", "seconds", *BY_IMAGE)})
        return found

    def prepare(self) -> None:
        """Build and evaluate dense, before any worker, of which each would do so."""
        self.holdout.check_labels(self.dense.classes)
        self.progress(f"dense {self.dense_point.precision}: {len(self.baseline.ranks)} search images", 0, 0)

    def evaluate(self, bundle: Bundle, part: Part) -> Evaluation:
        """A bundle on all images of a part."""
        return self.evaluator(self, bundle, part)

    def bundle(self, name: str) -> Bundle:
        """What `build` left. Raises BundleError."""
        return Bundle.load(self.settings.out / "bundles" / name)

    def build(self, point: Point, name: str) -> Bundle:
        """The engine of a point in `bundles/NAME`, as `edgevit export` builds it. Raises EdgeVitError."""
        folder = self.settings.out / "bundles" / name
        settings = self.settings.export(point, folder)
        target = runtime(self.settings.target, point.options)
        schedule = parse_schedule(point.reduce)
        with staged(folder, force=True) as place:
            road = prepare(self.checkpoint, target, point.precision, schedule, self.calib, settings, self.progress)
            finish(road, place, {}, self.progress)
        return Bundle.load(folder)

    def reduced(self, point: Point) -> ReducedModel:
        """The float module of a point. Raises ScheduleError."""
        from edgevit.reduce import reduce

        assert self.vit is not None  # the space has no method otherwise
        return reduce(self.vit, parse_schedule(point.reduce), self.target.policy.lowering, self.target.policy.explicit)

    @cached_property
    def proxy_images(self) -> torch.Tensor:
        """The first calibration images `[B, 3, H, W]`."""
        import torch

        few = self.calib.head(PROXY_IMAGES)
        return torch.from_numpy(next(iter(few.tensors(self.checkpoint.preprocess, len(few)))))

    @cached_property
    def proxy_classes(self) -> torch.Tensor:
        """What the dense float model says of them `[B]`."""
        import torch

        with torch.no_grad():
            return self.checkpoint.callable()(self.proxy_images).argmax(-1)

    def paired(self, run: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], batch: int, limit: float) -> Paired:
        """Compare scores with dense on the search images, until they are clearly worse than `limit` points allow."""
        lost = won = images = 0
        worse, margins = False, list[float]()
        answers = scored(run, "candidate", self.checkpoint.preprocess, self.search, batch)
        for answer, rank in zip(answers, self.baseline.ranks, strict=True):
            images += 1
            lost += rank == 0 and answer.rank > 0
            won += rank > 0 and answer.rank == 0
            margins.append(answer.margin)
            if images % CHUNK == 0 and clearly_worse(lost, won, images, limit):
                worse = True
                break
        return Paired(lost, won, images, worse, smoothed_drop(self.baseline.margins[:images], margins))


def split(settings: TuneSettings, progress: Progress = silent) -> tuple[Dataset, Dataset]:
    """Images of the search, and images that it never sees. Raises EdgeVitError.

    Without --holdout, --eval is halved: first and second half; where it comes in class order, every second image.
    """
    data = read_dataset(settings.eval, progress)
    if settings.holdout:
        other = read_dataset(settings.holdout, progress)
        _apart(data, "--eval", other, "--holdout")
        return data, other
    if len(data) < 2:
        raise EdgeVitError(f"{data.name} has {len(data)} image, and half of them are held back; give more")
    numbers = range(len(data))
    if list(data.labels) == sorted(data.labels):
        parts = [numbers[::2], numbers[1::2]]
    else:
        parts = [numbers[: len(data) // 2], numbers[len(data) // 2 :]]
    first, second = (
        Dataset(data.name, tuple(data.files[i] for i in part), tuple(data.labels[i] for i in part)) for part in parts
    )
    return first, second


def _apart(one: Dataset, its_name: str, other: Dataset, other_name: str) -> None:
    """Refuse images that are in both."""
    both = {f.resolve() for f in one.files} & {f.resolve() for f in other.files}
    if both:
        count = f"{len(both)} images are" if len(both) > 1 else "an image is"
        raise EdgeVitError(f"{count} in {its_name} and in {other_name}, as {min(both)}; give other images")

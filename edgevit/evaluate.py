"""Accuracy of compiled engines: top-1, top-5, and paired flips against another bundle on the same images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from edgevit.bundle import Bundle
from edgevit.data import Dataset
from edgevit.errors import DataError
from edgevit.progress import Progress
from edgevit.runtimes import runtime
from edgevit.runtimes.base import seen

if TYPE_CHECKING:
    import numpy as np

    from edgevit.preprocess import Preprocess


@dataclass(frozen=True)
class Evaluation:
    """Predictions of one bundle: `ranks[i]` is the place of the true label among the outputs (0 = top-1).

    margins: its score less the highest other one. by: what ran here. unverified: what the device may do otherwise,
    where that was not the engine itself.
    """

    bundle: str
    predicted: tuple[int, ...]
    ranks: tuple[int, ...]
    seconds: float
    by: str = ""
    unverified: tuple[str, ...] = ()
    margins: tuple[float, ...] = ()

    @property
    def images(self) -> int:
        """How many."""
        return len(self.ranks)

    @property
    def top1(self) -> float:
        """Percent."""
        return self._within(1)

    @property
    def top1_se(self) -> float:
        """Standard error of top-1 in percent (binomial)."""
        return standard_error(self.top1, self.images)

    def _within(self, k: int) -> float:
        return 100 * sum(rank < k for rank in self.ranks) / self.images

    def to_json(self) -> dict[str, Any]:
        """The keys of the command-line contract."""
        return {
            "bundle": self.bundle,
            "images": self.images,
            "top1": self.top1,
            "top5": self._within(5),
            "seconds": self.seconds,
            "top1_se": self.top1_se,
            "by": self.by,
            "unverified": list(self.unverified),
        }


class Answer(NamedTuple):
    """One image: the predicted class, the place of the true label, its score less the highest other one."""

    predicted: int
    rank: int
    margin: float


def evaluate(bundle: Bundle, data: Dataset, progress: Progress | None = None) -> Evaluation:
    """Run a bundle's engine over labelled images with its own preprocessing. Raises DataError, RuntimeRefusal."""
    _check_classifier(bundle)
    data.check_labels(bundle.classes)
    target, precision = runtime(bundle.manifest["target"]), bundle.engine.precision
    session = target.open(bundle.engine)
    batch = bundle.engine.inputs.batch
    answers: list[Answer] = []
    started = time.perf_counter()
    for answer in scored(session.run, bundle.name, bundle.preprocess, data, batch):
        answers.append(answer)
        if progress and (len(answers) % batch == 0 or len(answers) == len(data)):
            progress(f"evaluate {bundle.name}", len(answers), len(data))
    seconds, here = time.perf_counter() - started, seen(target, precision)
    unverified = here.unverified if target.runs_here(precision) else ()
    predicted, ranks, margins = zip(*answers, strict=True)
    return Evaluation(bundle.name, predicted, ranks, seconds, here.by, unverified, margins)


def scored(
    run: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    name: str,
    preprocess: Preprocess,
    data: Dataset,
    batch: int,
) -> Iterator[Answer]:
    """The answers, one by one; images are read as they are asked for.

    run: float32 `[batch, 3, H, W]` → scores `[batch, classes]`. Raises DataError for a score that is no number.
    """
    import numpy as np

    done = 0
    for images in data.tensors(preprocess, batch):
        for scores in run(images)[: len(data) - done]:
            if not np.isfinite(scores).all():
                raise DataError(f"{name} gives NaN or infinite outputs for {data.files[done].name}")
            label = data.labels[done]
            others = np.delete(scores, label).max(initial=-np.inf)
            yield Answer(int(scores.argmax()), rank(scores, label), float(scores[label] - others))
            done += 1


def standard_error(percent: float, images: int) -> float:
    """Of a share of images, in percent (binomial)."""
    p = percent / 100
    return 100 * math.sqrt(p * (1 - p) / images)


def rank(scores: np.ndarray[Any, Any], label: int) -> int:
    """The place of a class among `[classes]` scores; equal scores stand in class order, as argmax takes them.

    So an engine that gives one constant is right for class 0 only, not for all.
    """
    return int((scores > scores[label]).sum() + (scores[:label] == scores[label]).sum())


def _check_classifier(bundle: Bundle) -> None:
    shape = bundle.manifest["output"]["shape"]
    if len(shape) != 2:
        raise DataError(f"{bundle.name} gives outputs {shape}; accuracy needs [batch, classes]")


def compare(result: Evaluation, baseline: Evaluation) -> dict[str, Any]:
    """Paired comparison on the same images: agreement in percent, images lost and won."""
    right, base = [r == 0 for r in result.ranks], [r == 0 for r in baseline.ranks]
    same = sum(a == b for a, b in zip(result.predicted, baseline.predicted, strict=True))
    return {
        "bundle": baseline.bundle,
        "top1": baseline.top1,
        "agreement": 100 * same / result.images,
        "flips_lost": sum(b and not a for a, b in zip(right, base, strict=True)),
        "flips_won": sum(a and not b for a, b in zip(right, base, strict=True)),
    }

"""How a trial is judged: the cheapest look first, the next one only for what is not clearly bad."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from edgevit.errors import EdgeVitError
from edgevit.tune.record import Job, Record

if TYPE_CHECKING:
    from edgevit.tune.space import Point
    from edgevit.tune.workshop import Paired, Workshop

Figures = dict[str, Any]

DISAGREE = 20.0
"""Percent of the few proxy images on which a candidate may say something else than dense; or, where it is more, this
many times its limit: most changed answers were wrong before or after."""
DISAGREE_TIMES = 5.0
FLOAT_BATCH = 8
FLOAT = ("drop", "smoothed_drop", "images")
"""What is kept of a float look."""


class Fidelity(NamedTuple):
    """One look. run: adds its figures, and says why the trial ends here, or None. measures: others must be quiet."""

    name: str
    run: Callable[[Workshop, Job, Point, Figures], str | None]
    measures: bool = False


def proxy(shop: Workshop, job: Job, point: Point, figures: Figures) -> str | None:
    """MACs, and answers of the reduced float model on a few calibration images."""
    import torch

    if point.is_dense:
        return None
    reduced = shop.reduced(point)
    figures["macs_share"] = reduced.reduced_macs / reduced.dense_macs
    with torch.no_grad():
        same = (reduced.module(shop.proxy_images).argmax(-1) == shop.proxy_classes).float().mean()
    figures["proxy_agreement"] = 100 * float(same)
    allowed = max(DISAGREE, DISAGREE_TIMES * job.limit)
    if figures["proxy_agreement"] < 100 - allowed:
        return f"agrees with dense on {figures['proxy_agreement']:.0f} % of {len(shop.proxy_images)} images"
    return None


def float_accuracy(shop: Workshop, job: Job, point: Point, figures: Figures) -> str | None:
    """The reduced float model beside dense on the search images."""
    import torch

    if point.is_dense:
        return None
    module = shop.reduced(point).module
    with torch.no_grad():
        found = shop.paired(lambda images: module(torch.from_numpy(images)).numpy(), FLOAT_BATCH, job.limit)
    figures |= {f"float_{key}": value for key, value in found.to_json().items() if key in FLOAT}
    why = _too_bad(shop, found, job.limit)
    return why and f"in float {why}"


def engine_accuracy(shop: Workshop, job: Job, point: Point, figures: Figures) -> str | None:
    """Build what `edgevit export` builds, and compare that."""
    from edgevit.runtimes import runtime

    bundle = shop.build(point, bundle_name(job.trial))
    schedule = bundle.manifest["schedule"]
    figures |= {"size_bytes": bundle.size_bytes, "macs": schedule["macs"]["reduced"], "schedule": schedule["text"]}
    session = runtime(shop.settings.target, point.options).open(bundle.engine)
    found = shop.paired(session.run, bundle.engine.inputs.batch, job.limit)
    figures |= found.to_json()
    return _too_bad(shop, found, job.limit)


def latency(shop: Workshop, job: Job, point: Point, figures: Figures) -> str | None:
    """The engine on the device, beside dense."""
    figures |= shop.meter.time([shop.bundle(bundle_name(job.trial))], shop.dense)[0].to_json()
    return None


FIDELITIES = (
    Fidelity("proxy", proxy),
    Fidelity("float accuracy", float_accuracy),
    Fidelity("engine accuracy", engine_accuracy),
    Fidelity("latency", latency, measures=True),
)
"""In this order, each far cheaper than the next."""
WAITING = "waiting"
"""Beside them in a trial's seconds: for its turn, while others measured or computed."""


def bundle_name(trial: int) -> str:
    """The folder of a trial's engine in `bundles`."""
    return f"trial-{trial}"


def run_trial(shop: Workshop, job: Job) -> Record:
    """All looks, until one ends it. A refusal prunes; anything else that escapes fails this trial, with its place."""
    point = shop.space.point(job.params)
    figures: Figures = {}
    seconds: dict[str, float] = {WAITING: 0.0}
    state, stopped_at, why = "complete", None, None
    for look in FIDELITIES:
        asked = started = time.monotonic()
        try:
            with shop.turns.measuring(shop.meter.local) if look.measures else shop.turns.computing():
                started = time.monotonic()
                why = look.run(shop, job, point, figures)
            state = "pruned" if why else state
        except EdgeVitError as error:
            state, why = "failed" if look.measures else "pruned", " ".join(str(error).split())
        except Exception as error:  # a vendor's converter may raise anything; one candidate is not the study
            last = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({last.filename}:{last.lineno})"
            state = "failed"
        seconds[look.name] = round(time.monotonic() - started, 2)
        seconds[WAITING] = round(seconds[WAITING] + started - asked, 2)
        if why:
            stopped_at = look.name
            break
    return record(shop, job, state, stopped_at, why, figures, seconds)


def record(
    shop: Workshop,
    job: Job,
    state: Any,
    stopped_at: str | None,
    why: str | None,
    figures: Figures,
    seconds: dict[str, float],
) -> Record:
    """A trial's end, with the command that builds its point again."""
    point = shop.space.point(job.params)
    return Record(
        job.trial, job.generation, job.slot, job.tries, job.params, point.reduce, point.precision, dict(point.options),
        state, shop.settings.command(point, bundle_name(job.trial)), stopped_at, why, figures, seconds,
    )  # fmt: skip


def _too_bad(shop: Workshop, found: Paired, limit: float) -> str | None:
    """Why the answers end a trial: clearly above the limit, or, on all images, above the drop that is allowed."""
    if found.worse:
        flips = f"{found.lost} lost, {found.won} won of the first {found.images} images"
        return f"clearly loses more than {limit:g} points: {flips}"
    if shop.settings.goal.kind == "max-drop" and not shop.settings.goal.meets(found.to_json()):
        near = f", {found.smoothed[0]:.2f} where near misses count in part" if found.drop <= limit else ""
        return f"loses {found.drop:.2f} points on the search images{near}"
    return None

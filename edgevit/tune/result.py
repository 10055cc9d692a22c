"""The end of a study: the best candidates measured again side by side, the winner on images the search never saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.bundle import REPORT, SCHEMA, Bundle, staged, write_json
from edgevit.errors import EdgeVitError, GateFailed
from edgevit.evaluate import compare
from edgevit.tune.fidelity import bundle_name
from edgevit.tune.flips import smoothed_drop
from edgevit.tune.goal import Goal, front
from edgevit.tune.record import Record
from edgevit.tune.workshop import Paired
from edgevit.tune.write import Study, write_study

if TYPE_CHECKING:
    from edgevit.tune.workshop import Workshop

FINALISTS = 3
"""Measured again, side by side, with the long plan: the fastest of many short measurements was also the luckiest."""
RESULT, WINNER = "result.json", "winner"


@dataclass(frozen=True)
class Outcome:
    """What a study came to. result: the keys of the command-line contract, and more."""

    result: Mapping[str, Any]
    summary: str


def conclude(shop: Workshop, records: Sequence[Record], stopped: str, spent_s: Callable[[], float]) -> Outcome:
    """Pick the winner and write everything. Raises GateFailed, with a row for each measured candidate."""
    settings = shop.settings
    known = _known(settings.out, records)
    if known:
        return known
    again = _measured_again(shop, finalists(settings.goal, records))
    good = [r for r in again if settings.goal.meets(r.figures)]
    base = next((r for r in records if r.place == (0, 0)), None)
    study = Study(settings, shop.space, records, shop.baseline.top1, base, stopped, spent_s())
    if not good:
        summary = write_study(study)
        raise GateFailed(f"nothing meets {settings.goal}; see {settings.out}/summary.md", rows(records))
    winner = best(good, shop)
    held_back = _holdout(shop, winner)
    study = replace(study, winner=winner, holdout=held_back, finalists=tuple(again), spent_s=spent_s())
    result = json.loads(json.dumps(_result(study)))  # as a later call reads it
    _copy(shop, winner, result)
    summary = write_study(study)
    write_json(settings.out / RESULT, {**result, "records": len(records), "summary": summary})
    return Outcome(result, summary)


def best(good: Sequence[Record], shop: Workshop) -> Record:
    """The winner. A reduced engine that is not surely faster than the best unreduced one has lost to it."""
    goal = shop.settings.goal
    ordered = sorted(good, key=lambda r: (goal.order(r.figures), r.reduce != "none", r.place))
    first = ordered[0]
    dense = next((r for r in ordered if r.reduce == "none"), None)
    if dense is None or first.reduce == "none" or goal.kind == "latency":
        return first
    low = first.figures["ratio_ci95"][0]
    return first if (low or first.figures["ratio"]) > dense.figures["ratio"] else dense


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The front as a table: what a person chooses from."""
    keys = ("drop", "drop_ci95", "smoothed_drop", "ratio", "ratio_ci95", "median_ms")
    return [
        {"name": r.name, "schedule": r.reduce, "precision": r.precision, "options": dict(r.options),
         **{key: r.figures[key] for key in keys}, "command": r.command}
        for r in front(records)
    ]  # fmt: skip


def finalists(goal: Goal, records: Sequence[Record]) -> list[Record]:
    """Who is measured again: the best of the front that may be the best, and the best unreduced one."""

    def order(candidates: Sequence[Record]) -> list[Record]:
        good = [r for r in candidates if r.state == "complete" and goal.meets(r.figures)]
        return sorted(good, key=lambda r: (goal.order(r.figures), r.place))

    chosen = order(front(records))[:FINALISTS]
    if goal.kind != "latency":
        chosen = [r for r in chosen if _may_be_faster(r, chosen[0])]
    dense = order([r for r in records if r.reduce == "none"])[:1]
    return [*chosen, *(r for r in dense if r not in chosen)]


def _may_be_faster(record: Record, first: Record) -> bool:
    """Unless the intervals of two short sessions say that it is slower."""
    high, low = record.figures["ratio_ci95"][1], first.figures["ratio_ci95"][0]
    return high is None or low is None or high >= low


def _measured_again(shop: Workshop, chosen: Sequence[Record]) -> list[Record]:
    if not chosen:
        return []
    shop.progress(f"measure {len(chosen)} finalists side by side", 0, 0)
    with shop.turns.measuring(shop.meter.local):
        timings = shop.meter.time([_bundle(shop, r) for r in chosen], shop.dense, long=True)
    return [replace(r, figures={**r.figures, **t.to_json()}) for r, t in zip(chosen, timings, strict=True)]


def _holdout(shop: Workshop, winner: Record) -> dict[str, Any]:
    """The winner beside dense, on images that took no part."""
    theirs, ours = shop.evaluate(shop.dense, "holdout"), shop.evaluate(_bundle(shop, winner), "holdout")
    against = compare(ours, theirs)
    near = smoothed_drop(theirs.margins, ours.margins)
    found = Paired(against["flips_lost"], against["flips_won"], ours.images, False, near).to_json()
    return {**found, "top1": ours.top1, "dense_top1": theirs.top1, "agreement": against["agreement"]}


def _bundle(shop: Workshop, record: Record) -> Bundle:
    return shop.bundle(bundle_name(record.trial))


def _result(study: Study) -> dict[str, Any]:
    """The keys of the command-line contract first."""
    winner = study.winner
    assert winner is not None
    states = [r.state for r in study.records]
    return {
        "best": {
            "bundle": str(study.settings.out / WINNER),
            "schedule": winner.reduce,
            "precision": winner.precision,
            "top1_drop": study.holdout["drop"],
            "speedup": winner.figures["ratio"],
            "options": dict(winner.options),
            "exact_schedule": winner.figures["schedule"],
            "drop_ci95": study.holdout["drop_ci95"],
            "smoothed_drop": study.holdout["smoothed_drop"],
            "smoothed_drop_ci95": study.holdout["smoothed_drop_ci95"],
            "speedup_ci95": list(winner.figures["ratio_ci95"]),
            "median_ms": winner.figures["median_ms"],
            "dense_ms": winner.figures["dense_ms"],
            "search_drop": winner.figures["drop"],
            "reduced": winner.reduce != "none",
            "command": winner.command,
        },
        "trials": {"count": len(states), **{state: states.count(state) for state in ("complete", "pruned", "failed")}},
        "front": rows(study.records),
        "holdout": dict(study.holdout),
        "finalists": rows_of(study.finalists),
        "stopped": study.stopped,
        "spent_s": round(study.spent_s, 1),
        "goal": str(study.settings.goal),
        "seed": study.settings.seed,
        "fake": winner.figures["fake"],
    }


def rows_of(chosen: Sequence[Record]) -> list[dict[str, Any]]:
    """The finalists as they were measured side by side."""
    return [
        {"name": r.name, **{key: r.figures[key] for key in ("drop", "ratio", "ratio_ci95", "median_ms", "ci95_ms")}}
        for r in chosen
    ]


def _copy(shop: Workshop, winner: Record, result: Mapping[str, Any]) -> None:
    """The winner's bundle, with the evidence in its report."""
    with staged(shop.settings.out / WINNER, force=True) as place:
        shutil.copytree(_bundle(shop, winner).folder, place, dirs_exist_ok=True)
        evidence = {key: result[key] for key in ("best", "holdout", "finalists", "goal", "fake")}
        write_json(place / REPORT, {"schema": SCHEMA, "tune": evidence, "evaluations": [], "profiles": []})


def _known(out: Path, records: Sequence[Record]) -> Outcome | None:
    """The result of these very trials, where an earlier call came to its end."""
    with suppress(OSError, ValueError, LookupError, TypeError, EdgeVitError):
        result = json.loads((out / RESULT).read_text(encoding="utf-8"))
        summary, count = result.pop("summary"), result.pop("records")
        if count == len(records):
            Bundle.load(out / WINNER)
            return Outcome(result, summary)
    return None

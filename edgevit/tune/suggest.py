"""The next generation of a study, from its record alone: the same record and seed give the same choices.

The first generation keeps every token: in the default precision, in int8, in the other float ones. The second is each
method at a moderate cut, in the fastest of these. Where a drop is asked, two more halve each method's amounts: what is
too deep is cheap to see. From then on Optuna's TPE sampler chooses, among what was not tried yet; the sixth keeps every
token in the precisions that are left, which are rarely faster.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Sequence
from typing import Any

from edgevit.tune.goal import Goal
from edgevit.tune.record import Record, import_optuna
from edgevit.tune.space import MACS, Point, Space

GENERATION = 4
"""Trials that are chosen together by default, whatever the number of workers, which see nothing of each other."""
HALVING = (2, 3)
"""The generations that look for each method's amount."""
REST = 5
"""From this generation on, or earlier where nothing else is left, the precisions that are left."""
ASKS = 50
"""Tries of the sampler for a choice that is new."""

Params = dict[str, Any]


def suggest(
    space: Space, goal: Goal, records: Sequence[Record], generation: int, seed: int, together: int = GENERATION
) -> list[Params]:
    """The choices of a generation, its number; none where everything was tried. together: how many the sampler adds."""
    if generation == 0:
        return _dense(space, space.precisions[: space.opening])
    precisions = useful(space, goal, records)
    if generation == 1 and precisions and space.methods:
        return [space.first(method, precisions[0]) for method in space.methods]
    if generation in HALVING and precisions and goal.kind == "max-drop":
        found = _halved(space, goal, records, precisions[0])
        if found:
            return found
    tried = [r.params for r in records]
    rest = [params for params in _dense(space, space.precisions[space.opening :]) if params not in tried]
    if generation >= REST and rest:
        return rest
    return _sampled(space, goal, records, precisions, random.Random(f"{seed} {generation}"), together) or rest


def useful(space: Space, goal: Goal, records: Sequence[Record]) -> list[str]:
    """Precisions worth a reduction, fastest first: their dense engine was built and does not lose too much itself."""
    dense = [r for r in records if r.reduce == "none" and r.state == "complete"]
    fit = [r for r in dense if goal.kind != "max-drop" or goal.meets(r.figures)]
    return list(dict.fromkeys(r.precision for r in sorted(fit, key=lambda r: (-r.figures["ratio"], r.place))))


def remaining(space: Space, goal: Goal, records: Sequence[Record]) -> int:
    """How many reduced choices were not tried."""
    return len(_new(space, useful(space, goal, records), records))


def _dense(space: Space, precisions: Sequence[str]) -> list[Params]:
    names = [f"option {name}" for name in space.options]
    mixed = [dict(zip(names, values, strict=True)) for values in itertools.product(*space.options.values())]
    return [{**space.dense(precision), **options} for precision in precisions for options in mixed]


def _halved(space: Space, goal: Goal, records: Sequence[Record], precision: str) -> list[Params]:
    """Each method in the middle between its deepest cut that holds and the mildest that does not."""
    found = []
    for method in space.methods:
        first = space.first(method, precision)
        same = [r for r in records if r.state != "failed" and {**r.params, "macs": first["macs"]} == first]
        held = [r for r in same if r.state == "complete" and goal.meets(r.figures)]
        deepest = min((r.params["macs"] for r in held), default=1.0)
        mildest = max((r.params["macs"] for r in same if r not in held), default=0.0)
        between = [macs for macs in MACS if mildest < macs < deepest]
        if same and between:
            found.append({**first, "macs": between[len(between) // 2]})
    return found


def _new(space: Space, precisions: Sequence[str], records: Sequence[Record]) -> list[Params]:
    """Every reduced choice that was not tried; two that mean the same count once."""
    known = {str(space.point(r.params)) for r in records}
    table = {**space.choices(), "method": space.methods, "precision": tuple(precisions)}
    found: dict[str, Params] = {}
    for values in itertools.product(*table.values()):
        params = dict(zip(table, values, strict=True))
        found.setdefault(str(space.point(params)), params)
    return [params for point, params in found.items() if point not in known]


def _sampled(
    space: Space,
    goal: Goal,
    records: Sequence[Record],
    precisions: Sequence[str],
    draw: random.Random,
    together: int,
) -> list[Params]:
    left = {str(space.point(params)): params for params in _new(space, precisions, records)}
    if not left:
        return []
    optuna = import_optuna()
    kinds = optuna.distributions.CategoricalDistribution
    table = {**space.choices(), "method": space.methods, "precision": tuple(precisions)}
    distributions = {key: kinds(values) for key, values in table.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=draw.randrange(2**31), n_startup_trials=0)
    study = optuna.create_study(directions=["minimize"] * goal.objectives, sampler=sampler)
    for record in records:
        if record.reduce != "none" and record.precision in precisions and record.state != "failed":
            told = {"params": dict(record.params), "values": goal.values(record)}
            study.add_trial(optuna.trial.create_trial(**told, distributions=distributions))
    chosen: list[Params] = []
    for _ in range(min(together, len(left))):
        point = next((p for p in (_ask(study, distributions, space) for _ in range(ASKS)) if str(p) in left), None)
        chosen.append(left.pop(str(point) if point else draw.choice(sorted(left))))
    return chosen


def _ask(study: Any, distributions: dict[str, Any], space: Space) -> Point:
    return space.point(study.ask(distributions).params)

"""How a study of `edgevit tune` scales: a simulation with the task times that a real one recorded.

    python benchmarks/scale.py STUDY/trials.jsonl ... [--images 50000] [--trials 100] [--nodes 1 4 16] [--boards 1 5 20]

A worker has a node to itself and takes a whole trial, which waits for a free board before its latency; the next
generation is chosen when the last trial of this one ended. Before the search, dense is evaluated on the search images,
and after it dense and the winner on those held back, in shares over all workers. Half of the images are held back.

Trials repeat the recorded ones in their order. What a trial took is scaled by images where it saw all search images;
one that the sequential test ended early would end as early on more of them. Of `engine accuracy` the evaluation is
images times the seconds of dense for one (baseline.json beside the records, or --image-ms), at most all of it; the
rest is the build. A reduced engine is taken to be no faster than dense. The finalists' last measurement is not in it.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

FREE = 1_000_000
"""So many of something never are too few."""
GAIN = 0.05
"""Share of the hours that makes something a limit."""


class Trial(NamedTuple):
    """Seconds on a worker, then on a board; 0: it ended before."""

    compute_s: float
    latency_s: float


@dataclass(frozen=True)
class Plan:
    """What runs where. shared_s: work before and after the search that all workers share."""

    trials: tuple[Trial, ...]
    nodes: int
    boards: int
    generation: int
    shared_s: float


class Outcome(NamedTuple):
    """hours; workers, boards: busy share. A worker that waits for a board is not busy."""

    hours: float
    workers: float
    boards: float


def simulate(plan: Plan) -> Outcome:
    """Run the study's events in order of time."""
    now = 0.0
    todo = iter(plan.trials)
    while generation := list(itertools.islice(todo, plan.generation)):
        now = _generation(now, generation, plan.nodes, plan.boards)
    total = now + plan.shared_s / plan.nodes
    computed = sum(t.compute_s for t in plan.trials) + plan.shared_s
    measured = sum(t.latency_s for t in plan.trials)
    return Outcome(total / 3600, computed / (plan.nodes * total), measured / (plan.boards * total))


def _generation(start: float, trials: Sequence[Trial], nodes: int, boards: int) -> float:
    """When the last trial ends. A trial holds its worker while it waits for a board and is measured."""
    waiting, wanting = deque(trials), deque[Trial]()
    events: list[tuple[float, int, str, Trial]] = []  # (when, running number, what ended, whose)
    number = itertools.count()
    workers, free, now = nodes, boards, start
    while True:
        while workers and waiting:
            workers -= 1
            trial = waiting.popleft()
            heapq.heappush(events, (now + trial.compute_s, next(number), "compute", trial))
        while free and wanting:
            free -= 1
            trial = wanting.popleft()
            heapq.heappush(events, (now + trial.latency_s, next(number), "latency", trial))
        if not events:
            return now
        now, _, ended, trial = heapq.heappop(events)
        if ended == "compute" and trial.latency_s:
            wanting.append(trial)
            continue
        workers += 1
        free += ended == "latency"


def limits(plan: Plan) -> str:
    """What most of the time is lost to: the fewest things without whose limit the study is clearly shorter."""
    hours = simulate(plan).hours
    more: Mapping[str, dict[str, int]] = {
        "nodes": {"nodes": FREE},
        "boards": {"boards": FREE},
        f"generations of {plan.generation}": {"generation": len(plan.trials)},
    }
    for count in range(1, len(more) + 1):
        gains: dict[str, float] = {}
        for names in itertools.combinations(more, count):
            changed: dict[str, Any] = {key: value for name in names for key, value in more[name].items()}
            gains[" and ".join(names)] = 1 - simulate(replace(plan, **changed)).hours / hours
        best = max(gains, key=lambda name: gains[name])
        if gains[best] >= GAIN:
            return f"{best} (without: -{100 * gains[best]:.0f} %)"
    return "the longest trial"


def scaled(records: Sequence[Mapping[str, Any]], images: int, image_s: float) -> list[Trial]:
    """Recorded trials as they would be with so many search images."""
    full = max(max(r["figures"].get("images", 0), r["figures"].get("float_images", 0)) for r in records)
    return [_scaled(record, full, images, image_s) for record in records]


def _scaled(record: Mapping[str, Any], full: int, images: int, image_s: float) -> Trial:
    seconds, figures = record["seconds"], record["figures"]
    times = images / full if full else 1.0
    compute = seconds.get("proxy", 0.0)
    compute += seconds.get("float accuracy", 0.0) * (times if figures.get("float_images") == full else 1)
    engine, seen = seconds.get("engine accuracy", 0.0), figures.get("images", 0)
    evaluation = min(seen * image_s, engine)
    compute += engine - evaluation + evaluation * (times if seen == full else 1)
    return Trial(compute, seconds.get("latency", 0.0))


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Records that say how long they took; one whose process died does not."""
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [record for record in map(json.loads, lines) if record["seconds"]]


def dense_image_s(paths: Sequence[Path]) -> float | None:
    """Seconds of dense for one image, reading it included, from the first baseline.json beside the records."""
    for path in paths:
        baseline = path.with_name("baseline.json")
        if baseline.exists():
            found = json.loads(baseline.read_text(encoding="utf-8"))
            return float(found["seconds"]) / len(found["ranks"])
    return None


def rows(arguments: argparse.Namespace, trials: Sequence[Trial], shared_s: float) -> Iterator[str]:
    """The table."""
    yield "| nodes | boards | hours | workers busy | boards busy | what limits |"
    yield "|--:|--:|--:|--:|--:|---|"
    study = tuple(itertools.islice(itertools.cycle(trials), arguments.trials))
    for nodes, boards in itertools.product(arguments.nodes, arguments.boards):
        plan = Plan(study, nodes, boards, arguments.generation, shared_s)
        found = simulate(plan)
        busy = f"{100 * found.workers:.0f} % | {100 * found.boards:.0f} %"
        yield f"| {nodes} | {boards} | {found.hours:.1f} | {busy} | {limits(plan)} |"


def main() -> None:
    """Read, scale, simulate."""
    from edgevit.tune.suggest import GENERATION

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+", metavar="TRIALS.jsonl")
    parser.add_argument("--images", type=int, default=50_000, metavar="N", help="of --eval, half of them held back")
    parser.add_argument("--image-ms", type=float, metavar="MS", help="dense on one image; default: from baseline.json")
    parser.add_argument("--trials", type=int, default=100, metavar="N")
    parser.add_argument("--generation", type=int, default=GENERATION, metavar="N", help="trials chosen together")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    parser.add_argument("--boards", type=int, nargs="+", default=[1, 5, 20], metavar="N")
    arguments = parser.parse_args()
    if min(arguments.trials, arguments.generation, arguments.images, *arguments.nodes, *arguments.boards) < 1:
        parser.error("every number must be 1 or more")
    records = read(arguments.records)
    if not records:
        parser.error(f"{', '.join(map(str, arguments.records))}: no trial with its seconds")
    image_s = arguments.image_ms / 1e3 if arguments.image_ms else dense_image_s(arguments.records)
    if image_s is None:
        parser.error("no baseline.json beside the records; give --image-ms")
    search, held_back = arguments.images - arguments.images // 2, arguments.images // 2
    trials = scaled(records, search, image_s)
    print(f"{len(records)} recorded trials, {1e3 * image_s:.1f} ms for an image; with {search} search images:")
    for record, trial in zip(records, trials, strict=True):
        name = f"{record['reduce']} {record['precision']}"
        print(f"  {name}: {trial.compute_s / 60:.1f} min on a worker, {trial.latency_s / 60:.1f} min on a board")
    print(*rows(arguments, trials, image_s * (search + 2 * held_back)), sep="\n")


if __name__ == "__main__":
    main()

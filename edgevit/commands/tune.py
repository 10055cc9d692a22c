"""`edgevit tune`: MODEL → the best bundle for a device, found by measurement."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevit.commands.terminal import add_model_flags, note, print_json, progress
from edgevit.errors import GateFailed

SECONDS = {"s": 1, "m": 60, "h": 3600}


def duration(text: str) -> float:
    """`90s`, `30m`, `2h` → seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m or 2h")
    return float(found[1]) * SECONDS[found[2]]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of tune."""
    add_model_flags(parser)
    parser.add_argument("--target", required=True, metavar="TARGET", help="see `edgevit targets`")
    parser.add_argument(
        "--device", default="local", metavar="NAME", help="where latency is measured: `edgevit devices`"
    )
    parser.add_argument("--calib", type=Path, required=True, metavar="DATA", help="calibration images")
    parser.add_argument("--eval", type=Path, required=True, metavar="DATA", help="labelled images; half are held back")
    parser.add_argument("--holdout", type=Path, metavar="DATA", help="other labelled images to hold back instead")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--max-drop", type=float, metavar="POINTS", help="the fastest that loses no more than this")
    goal.add_argument("--latency", type=float, metavar="MS", help="the most accurate that is no slower than this")
    goal.add_argument("--pareto", action="store_true", help="the whole front")
    parser.add_argument("--budget", type=duration, default="30m", metavar="TIME", help="of all calls together (30m)")
    parser.add_argument("--trials", type=int, metavar="N", help="end after so many, if the budget lasts")
    parser.add_argument("--storage", metavar="URL", help="a database URL, or journal:FILE (SQLite in the folder)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the search (0)")
    parser.add_argument(
        "--generation", type=int, default=4, metavar="N", help="trials chosen together (4); one for each node or worker"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes of this machine (1)")
    parser.add_argument("--ray", metavar="ADDRESS", help="a worker on each node of this Ray cluster instead; or auto")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images per inference (static)")
    parser.add_argument("-o", "--out", type=Path, default=Path("study"), metavar="DIR", help="the study's folder")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Search, and say what won and why."""
    from edgevit.model_settings import model_keywords
    from edgevit.runtimes import runtime
    from edgevit.tune.goal import Goal
    from edgevit.tune.run import tune
    from edgevit.tune.settings import TuneSettings

    if arguments.max_drop is not None:
        goal = Goal("max-drop", arguments.max_drop)
    else:
        goal = Goal("pareto") if arguments.pareto else Goal("latency", arguments.latency)
    settings = TuneSettings(
        **model_keywords(arguments),
        target=runtime(arguments.target).name,
        calib=arguments.calib,
        eval=arguments.eval,
        goal=goal,
        out=arguments.out,
        holdout=arguments.holdout,
        device=arguments.device,
        budget_s=arguments.budget,
        trials=arguments.trials,
        storage=arguments.storage,
        seed=arguments.seed,
        generation=arguments.generation,
        workers=arguments.workers,
        ray=arguments.ray,
        batch=arguments.batch,
    )
    try:
        with progress() as show:
            outcome = tune(settings, show)
    except GateFailed as error:
        _print_front(error.trials)
        raise
    except KeyboardInterrupt:
        note(f"interrupted; the same command goes on with the study in {settings.out}")
        return 130
    if arguments.json:
        print_json(outcome.result)
        return 0
    print(outcome.summary)
    print(
        f"next: edgevit embed {outcome.result['best']['bundle']} --app APP -o DIR; the front: {settings.out}/front.html"
    )
    return 0


def _print_front(rows: Sequence[Mapping[str, Any]]) -> None:
    """What there is, on standard error."""
    from rich.console import Console
    from rich.table import Table

    table = Table("engine", "points lost", "ms", "speedup")
    for row in rows:
        table.add_row(row["name"], f"{row['drop']:.2f}", f"{row['median_ms']:.2f}", f"{row['ratio']:.2f}")
    Console(stderr=True).print(table)

"""`edgevit eval`: accuracy of compiled bundles."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgevit.commands.terminal import note, print_json, print_table, progress


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of eval."""
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="what export wrote")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DATA", help="CSV with file,label, class folders, or .tar shards"
    )
    parser.add_argument("--against", type=Path, metavar="BUNDLE", help="compare on the same images")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate every bundle on the same images."""
    from edgevit.bundle import Bundle
    from edgevit.data import read_dataset
    from edgevit.evaluate import compare, evaluate

    bundles = [Bundle.load(path) for path in arguments.bundles]
    against = Bundle.load(arguments.against) if arguments.against else None
    with progress() as show:
        data = read_dataset(arguments.data, show)
        results = [evaluate(b, data, show) for b in bundles]
        baseline = evaluate(against, data, show) if against else None
    for result in (*results, *([baseline] if baseline else ())):
        if result.unverified:
            note(f"{result.bundle}: by {result.by}; not seen: {'; '.join(result.unverified)}")
    compared = [{"result": r.bundle, **compare(r, baseline)} for r in results] if baseline else []
    if arguments.json:
        value: dict[str, object] = {"results": [r.to_json() for r in results]}
        if compared:
            value |= {"against": compared[0], "comparisons": compared}  # `against` is the first; a script has one
        print_json(value)
        return 0
    from rich.table import Table

    table = Table(title=f"{data.name}: {len(data)} images")
    for column in ("bundle", "top-1 %", "± SE", "top-5 %", "s"):
        table.add_column(column, justify="left" if column == "bundle" else "right")
    for column in ("agreement %", "lost", "won") if baseline else ():
        table.add_column(column, justify="right")
    for index, result in enumerate([*results, *([baseline] if baseline else [])]):
        row = result.to_json()
        cells = [
            row["bundle"],
            f"{row['top1']:.2f}",
            f"{row['top1_se']:.2f}",
            f"{row['top5']:.2f}",
            f"{row['seconds']:.0f}",
        ]
        if index < len(compared):
            c = compared[index]
            cells += [f"{c['agreement']:.2f}", str(c["flips_lost"]), str(c["flips_won"])]
        elif baseline:
            cells += ["against", "", ""]
        table.add_row(*cells)
    print_table(table)
    return 0

"""`edgevit report`: a page, a CSV and pictures of what was measured."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgevit.commands.terminal import csv_text, print_json, print_table


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of report."""
    parser.add_argument(
        "sessions", nargs="*", metavar="SESSION", help="of `edgevit history`, by the beginnings (default: the newest)"
    )
    parser.add_argument(
        "--eval", nargs="+", type=Path, default=[], metavar="FILE", help="accuracy: what `edgevit eval --json` printed"
    )
    parser.add_argument("--title", default="edgevit report", help="heading of the page")
    parser.add_argument("--png", action="store_true", help="write the plots as pictures too")
    parser.add_argument("-o", "--out", type=Path, default=Path("report"), metavar="DIR", help="folder")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Read the history, write the folder, show the table."""
    from edgevit.devices import history
    from edgevit.errors import BundleError
    from edgevit.files import whole
    from edgevit.report import table, write_report
    from edgevit.report_png import write_plots
    from edgevit.report_session import columns, measured, read_accuracy

    names = arguments.sessions or [history.newest()]
    found = measured([history.session(name) for name in dict.fromkeys(names)], read_accuracy(arguments.eval))
    out = arguments.out
    page = write_report(
        out / "report.html", arguments.title, found.rows, found.conditions, notes=found.notes, samples=found.samples
    )
    lines = [columns(row) for row in found.rows]
    try:
        with whole(out / "report.csv") as beside:
            beside.write_text(csv_text(lines[0], lines), encoding="utf-8")
        pictures = write_plots(out, found.rows, found.samples) if arguments.png else []
    except OSError as error:
        raise BundleError(f"the report {out} cannot be written: {error.strerror}") from error
    files = [page, out / "report.csv", *pictures]
    if arguments.json:
        print_json({"files": [str(file) for file in files], "rows": lines, "notes": list(found.notes)})
        return 0
    print_table(table(found.rows))
    for file in files:
        print(file)
    return 0

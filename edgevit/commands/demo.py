"""`edgevit demo`: the whole pipeline on the embedded model and images."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgevit.commands.terminal import note, print_json, print_table, progress


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of demo."""
    parser.add_argument("-o", "--out", type=Path, default=Path("demo-out"), metavar="DIR", help="default: demo-out")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Build four engines, measure them, print one table, write one page."""
    from dataclasses import asdict

    from edgevit.demo.run import run as run_demo
    from edgevit.report import headline, table

    with progress() as show:
        demo = run_demo(arguments.out, show)
    if arguments.json:
        print_json({"rows": [asdict(row) for row in demo.rows], "report": str(demo.page), "profile": demo.profile})
        return 0
    print_table(table(list(demo.rows)))
    found = headline(list(demo.rows))
    print(found.text, found.detail)
    for text in demo.profile["notes"]:
        note(text)
    print(f"report: {demo.page}")
    return 0

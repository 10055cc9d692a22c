"""`edgevit targets`: what can be built and run here."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from edgevit.commands.terminal import print_json, print_table


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of targets."""
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """List every target."""
    rows = survey()
    if arguments.json:
        print_json({"targets": rows})
        return 0
    from rich.table import Table

    table = Table()
    for column in ("target", "builds here", "runs here", "version", "precisions", "options", "remarks"):
        table.add_column(column)
    for row in rows:
        yes = {True: "yes", False: "no"}
        table.add_row(
            row["name"],
            yes[row["builds_here"]],
            yes[row["runs_here"]],
            row["version"] or "",
            ", ".join(row["precisions"]),
            ", ".join(f"{name}={value}" for name, value in row["options"].items()),
            row["reason"] if row["available"] else row["install"],
        )
    print_table(table)
    return 0


def survey() -> list[dict[str, Any]]:
    """One row per target; importing the runtime is the only honest test that it is there."""
    from edgevit.errors import MissingExtra
    from edgevit.runtimes import TARGETS, runtime

    rows = []
    for name in TARGETS:
        target = runtime(name)
        version, reason = None, ""
        try:
            version = target.version()
        except MissingExtra as error:
            reason = str(error)
        rows.append(
            {
                "name": name,
                "available": version is not None,
                "builds_here": version is not None,
                "runs_here": version is not None and target.runs_here() is None,
                "install": _install(target.extra, reason),
                "version": version,
                "precisions": list(target.policy.precisions),
                "options": {f.name: f.default for f in fields(target)},
                "reason": reason or target.runs_here() or "",
            }
        )
    return rows


def _install(extra: str, reason: str) -> str:
    """The line to type: pip's, or the one that a missing package's error ends with."""
    line = reason.rpartition(": ")[2]
    return line if line.startswith("npm ") else f"pip install 'edgevit[{extra}]'"

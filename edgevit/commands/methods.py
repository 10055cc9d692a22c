"""`edgevit methods`: the token reduction methods and what they need."""

from __future__ import annotations

import argparse
from typing import Any

from edgevit.commands.terminal import print_json, print_table


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of methods."""
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """List the methods from the table."""
    from importlib import import_module

    from edgevit.tokens import METHODS, method

    rows: list[dict[str, Any]] = []
    for name, path in METHODS.items():
        cls = method(name)
        rows.append(
            {
                "name": name,
                "summary": (import_module(path.split(":")[0]).__doc__ or "").split("\n")[0],
                "keys": dict(cls.keys),
                "options": dict(cls.options),
                "needs": list(cls.wants()),
                "example": (cls.__doc__ or "").split("\n")[0],
            }
        )
    if arguments.json:
        print_json({"methods": rows})
        return 0
    from rich.table import Table

    table = Table()
    for column in ("method", "what it does", "keys", "needs"):
        table.add_column(column)
    for row in rows:
        keys = ", ".join(row["keys"])
        options = [f"{k} ({' or '.join(v) or 'a value'})" for k, v in row["options"].items()]
        what = f"{row['summary']}\n{row['example']}"
        table.add_row(row["name"], what, "\n".join([keys, *options]), "\n".join(row["needs"]))
    print_table(table)
    return 0

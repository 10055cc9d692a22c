"""`edgevit history`: what `edgevit profile` measured."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from edgevit.commands.terminal import csv_text, print_json, print_table

COLUMNS = (
    *("session", "time", "device", "bundle", "against", "median_ms", "ci95_low_ms", "ci95_high_ms", "p90_ms", "p99_ms"),
    *("speedup", "speedup_low", "speedup_high", "rounds", "samples", "energy_mj", "peak_memory_bytes"),
    *("runtime", "runtime_version", "fake"),
)
SAMPLE_COLUMNS = ("round", "bundle", "side", "sample", "ms")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of history."""
    parser.add_argument(
        "session", nargs="?", metavar="SESSION", help="show this one; the beginning of its name suffices"
    )
    parser.add_argument("--bundle", metavar="NAME", help="sessions with this bundle")
    parser.add_argument("--device", metavar="NAME", help="sessions on this device")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object on standard output")
    form.add_argument("--csv", action="store_true", help="a line a bundle, for a SESSION a line a sample")


def run(arguments: argparse.Namespace) -> int:
    """List, or show one."""
    from edgevit.devices import history

    if arguments.session:
        _show(history.session(arguments.session), arguments)
        return 0
    found = rows(history.sessions(arguments.bundle, arguments.device))
    if arguments.bundle:
        found = [row for row in found if arguments.bundle in (row["bundle"], row["against"])]
    if arguments.json:
        print_json({"file": str(history.store_path()), "results": found})
    elif arguments.csv:
        print(csv_text(COLUMNS, found), end="")
    else:
        print_table(_table(found, str(history.store_path())))
    return 0


def rows(sessions: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a bundle, with the keys of COLUMNS."""
    found = []
    for one in sessions:
        summary = one["summary"]
        for result in summary["results"]:
            speed = summary["speedup"].get(result["bundle"], {"ratio": None, "ci95": (None, None)})
            values = {
                **one,
                **result,
                "against": summary["against"],
                "ci95_low_ms": result["ci95_ms"][0],
                "ci95_high_ms": result["ci95_ms"][1],
                "speedup": speed["ratio"],
                "speedup_low": speed["ci95"][0],
                "speedup_high": speed["ci95"][1],
                "energy_mj": (result.get("energy_mj") or {}).get("net"),
                "fake": result["fake"],
            }
            found.append({name: values[name] for name in COLUMNS})
    return found


def _show(one: dict[str, Any], arguments: argparse.Namespace) -> None:
    """One session, in the form that is asked for."""
    from edgevit.commands.profile import show_summary

    if arguments.csv:
        samples = (
            {"round": line["round"], "bundle": line["bundle"], "side": line["side"], "sample": number, "ms": ms}
            for line in one["rounds"]
            for number, ms in enumerate(line["samples_ms"])
        )
        print(csv_text(SAMPLE_COLUMNS, samples), end="")
        return
    if arguments.json:
        print_json(one)
        return
    print(f"{one['session']}: {one['time']}, device {one['device']}")
    show_summary(one["summary"], as_json=False)


def _table(found: list[dict[str, Any]], title: str) -> Any:
    from rich.table import Table

    shown = Table(title=title)
    for column in ("session", "device", "bundle", "median ms", "95 % CI", "against", "speedup", "95 % CI"):
        shown.add_column(column, justify="right" if "ms" in column or "CI" in column or column == "speedup" else "left")
    for row in found:
        shown.add_row(
            *(row["session"], row["device"], f"{row['bundle']}{' (FAKE)' if row['fake'] else ''}"),
            f"{row['median_ms']:.2f}",
            _interval(row["ci95_low_ms"], row["ci95_high_ms"]),
            row["against"] or "",
            "" if row["speedup"] is None else f"{row['speedup']:.2f}",
            _interval(row["speedup_low"], row["speedup_high"]),
        )
    return shown


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"

"""`edgevit profile`: latency of bundles, on this machine or on a device."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.commands.terminal import note, print_json, print_table, progress

if TYPE_CHECKING:
    from edgevit.devices.bench import BenchPlan
    from edgevit.devices.config import Device
    from edgevit.devices.plan import Job


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of profile."""
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="what export wrote")
    parser.add_argument("--against", type=Path, metavar="BUNDLE", help="interleave with this one (A B B A)")
    parser.add_argument("--device", default="local", metavar="NAME", help="where to measure: see `edgevit devices`")
    parser.add_argument("--rounds", type=int, metavar="N", help="fresh processes per bundle (default 12)")
    parser.add_argument(
        "--turn", type=int, metavar="N", help="take turns with --against every N inferences: where others disturb"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the runtime (default: all cores here)")
    parser.add_argument(
        "--lock-clocks", action="store_true", help="highest clocks there while it is measured, restored afterwards"
    )
    parser.add_argument(
        "--power-mode", metavar="MODE", help="power mode of a Jetson there, by name; restored afterwards"
    )
    parser.add_argument("--no-collect", action="store_true", help="no power, heat and clocks beside the rounds")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="folder for the full record, raw samples included"
    )
    parser.add_argument(
        "--layers", action="store_true", help="instead: what single layers, blocks and reduction steps cost"
    )
    parser.add_argument("--no-history", action="store_true", help="do not keep it: see `edgevit history`")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Measure, one process at a time."""
    from edgevit.bundle import Bundle
    from edgevit.devices import history
    from edgevit.devices.bench import BenchPlan, profile
    from edgevit.devices.config import LOCAL, find
    from edgevit.devices.plan import Setup
    from edgevit.devices.result import record
    from edgevit.measure import about, check_kind, job, unique_names

    device = None if arguments.device == LOCAL else find(arguments.device)
    bundles = [Bundle.load(path) for path in arguments.bundles]
    against = Bundle.load(arguments.against) if arguments.against else None
    every = [*bundles, *([against] if against else [])]
    for bundle in every:
        check_kind(bundle, device.kind if device else LOCAL)
    names = unique_names(every)
    there = device is not None
    jobs = [job(b, n, there) for b, n in zip(bundles, names, strict=False)]
    options: dict[str, Any] = {"threads": arguments.threads}
    options |= {key: value for key in ("rounds", "turn") if (value := getattr(arguments, key)) is not None}
    hold = {"nvpmodel": arguments.power_mode} if arguments.power_mode else {}
    wanted = Setup({**hold, **({"clocks": "highest"} if arguments.lock_clocks else {})}, not arguments.no_collect)
    if arguments.layers:
        return _layers(jobs, BenchPlan(**options), device, arguments)
    if not arguments.no_history:
        history.check()
    with progress() as show:
        other = job(against, names[-1], there) if against else None
        found = profile(jobs, other, BenchPlan(**options), show, device, wanted, note)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        record(found, arguments.out)
    show_summary(found.to_json(), arguments.json)
    if not arguments.no_history:  # last: whatever is wrong there, the measurement is out
        history.save(found, {name: about(bundle) for name, bundle in zip(names, every, strict=True)})
    return 0


def _layers(jobs: list[Job], plan: BenchPlan, device: Device | None, arguments: argparse.Namespace) -> int:
    """A table a bundle; the reduction steps last, by operator."""
    from rich.table import Table

    from edgevit.devices.layered import time_layers

    with progress() as show:
        found = time_layers(jobs, plan, show, device)
    if arguments.json:
        print_json({"layers": found})
        return 0
    for name, one in found.items():
        fake = "FAKE " if one["fake"] else ""
        shown = Table(
            title=f"{fake}{name}: {one['runtime']} {one['runtime_version']}, {one['layers_ms']:.2f} ms in layers"
        )
        for column in ("place", "ms", "%"):
            shown.add_column(column, justify="left" if column == "place" else "right")
        for row in one["places"]:
            shown.add_row(row["place"], f"{row['ms']:.3f}", f"{100 * row['share']:.1f}")
        step = one["reduction"]
        shown.add_section()
        shown.add_row("reduction, all steps", f"{step['ms']:.3f}", f"{100 * step['share']:.1f}")
        for row in step["operators"]:
            shown.add_row(f"  {row['operator']}", f"{row['ms']:.3f}", f"{100 * row['share']:.1f}")
        print_table(shown)
    note("timing layers slows a runtime: these are shares, not latencies")
    return 0


def show_summary(summary: dict[str, Any], as_json: bool) -> None:
    """On standard output; notes of a table on standard error."""
    if as_json:
        print_json(summary)
        return
    print_table(table(summary))
    for text in summary["notes"]:
        note(text)


def table(summary: dict[str, Any]) -> Any:
    """The results as a table; what could not be measured is a dash."""
    from rich.table import Table

    device, conditions = summary["device"], summary["conditions"]
    where = ": ".join(filter(None, (device.get("name"), device.get("browser") or device["cpu"])))
    title = f"{where}, {conditions['threads']} threads, order {conditions['order']}"
    shown = Table(title=title)
    for column in ("bundle", "median ms", "95 % CI", "p90", "p99", "speedup", "95 % CI"):
        shown.add_column(column, justify="left" if column == "bundle" else "right")
    for row in summary["results"]:
        speed = summary["speedup"].get(row["bundle"])
        shown.add_row(
            row["bundle"],
            _number(row["median_ms"]),
            _interval(row["ci95_ms"]),
            _number(row["p90_ms"]),
            _number(row["p99_ms"]),
            _number(speed["ratio"]) if speed else "1",
            _interval(speed["ci95"]) if speed else "",
        )
    return shown


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(values: list[float | None]) -> str:
    return "–" if values[0] is None else f"{values[0]:.2f} to {values[1]:.2f}"

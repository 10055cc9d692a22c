"""`edgevit export`: MODEL → bundle."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevit.commands.terminal import add_model_flags, named_value, note, print_json, progress
from edgevit.errors import GateFailed


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of export."""
    add_model_flags(parser)
    parser.add_argument("--target", required=True, metavar="TARGET", help="see `edgevit targets`")
    parser.add_argument(
        "--option",
        dest="options",
        type=named_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the target, see `edgevit targets` (repeat)",
    )
    parser.add_argument("--reduce", default="none", metavar="SPEC", help="token schedule, for example tome:r=60/40@5,9")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--int8", dest="precision", action="store_const", const="int8", help="needs --calib")
    precision.add_argument(
        "--fp16", dest="precision", action="store_const", const="fp16", help="where the target has it"
    )
    precision.add_argument("--precision", dest="precision", metavar="P", help="fp32, bf16, int8, int8+bf16, ...")
    parser.add_argument("--calib", type=Path, metavar="DATA", help="calibration images")
    parser.add_argument("--eval", type=Path, metavar="DATA", help="labelled images: accuracy beside the dense baseline")
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help="exit 3 if accuracy drops more than this")
    parser.add_argument("--min-speedup", type=float, metavar="X", help="exit 3 unless this much faster than dense fp32")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images per inference (static)")
    parser.add_argument("--device", default="local", metavar="NAME", help="where --min-speedup measures (local)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line, copied into the bundle")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="the bundle's directory")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Export, then say what came out and what to do next."""
    from edgevit.model_settings import model_keywords
    from edgevit.pipeline import ExportSettings, export
    from edgevit.runtimes import runtime

    options = dict(arguments.options)
    target = runtime(arguments.target, options).name  # a misspelt target fails before anything is loaded
    out = arguments.out or Path(_default_name(arguments, target))
    settings = ExportSettings(
        **model_keywords(arguments),
        target=target,
        out=out,
        reduce=arguments.reduce,
        precision=arguments.precision,
        calib=arguments.calib,
        eval=arguments.eval,
        max_drop=arguments.max_drop,
        min_speedup=arguments.min_speedup,
        batch=arguments.batch,
        labels=arguments.labels,
        device=arguments.device,
        options=options,
        force=arguments.force,
    )
    try:
        with progress() as show:
            exported = export(settings, show)
    except GateFailed as error:
        _print_trials(error.trials)
        raise
    result = exported.to_json()
    if arguments.json:
        print_json(result)
        return 0
    _print(result)
    for text in exported.notes:
        note(text)
    return 0


def _default_name(arguments: argparse.Namespace, target: str) -> str:
    """`model-target[-method][-precision]` in the current folder."""
    stem = Path(arguments.model.replace(":", "-")).stem
    method = "" if arguments.reduce == "none" else "-" + arguments.reduce.split(":")[0]
    return f"{stem}-{target}{method}" + (f"-{arguments.precision}" if arguments.precision else "")


def _print(result: dict[str, object]) -> None:
    """A few lines for a person."""
    macs, checks = result["macs"], result["checks"]
    assert isinstance(macs, dict)
    assert isinstance(checks, dict)
    kept = result["kept_float"]
    assert isinstance(kept, list)
    print(
        f"{result['bundle']}  {result['target']}  {result['precision']}  {int(str(result['size_bytes'])) / 1e6:.1f} MB"
    )
    print(f"  schedule  {result['schedule']}   tokens {_runs(result['tokens'])}")
    print(f"  MACs      {macs['dense'] / 1e9:.3f} G dense, {macs['reduced'] / 1e9:.3f} G here")
    print(
        f"  check     {checks['sqnr_db']:.0f} dB against {checks['reference']} on {checks['images']} images "
        f"({checks['image_source']}), same top-1 on {checks['agreement']:.0f} %"
    )
    print(f"            by {checks['by']}")
    for text in checks["unverified"]:
        print(f"  not seen  {text}")
    if kept:
        print(f"  float     {len(kept)} operators, each with its reason in {result['bundle']}/manifest.json")
    if isinstance(result["partition"], dict):
        _print_partition(result["partition"])
    if isinstance(result["gate"], dict):
        _print_gate(result["gate"])
        _print_trials(result["gate"]["trials"])
    print(f"next: edgevit eval {result['bundle']} --data DATA    edgevit profile {result['bundle']}")


def _print_partition(found: Mapping[str, Any]) -> None:
    """How much a delegate takes, and what it leaves."""
    rest = ", ".join(f"{row['count']} {row['operator']}" for row in found["rest"])
    share = f"{found['operators']} of {found['of']} operators, in {found['calls']} calls"
    print(f"  delegate  {found['delegate']} takes {share}" + (f"; the runtime's own kernels: {rest}" if rest else ""))


def _print_gate(gate: dict[str, object]) -> None:
    against = gate.get("against")
    if isinstance(against, dict):
        print(
            f"  accuracy  {gate['top1']:.2f} % on {gate['images']} images; baseline ({gate['baseline']}) "
            f"{against['top1']:.2f} %; lost {against['flips_lost']}, won {against['flips_won']}"
        )
    speedup = gate.get("speedup")
    if isinstance(speedup, dict):
        print(f"  speedup   {speedup['ratio']:.2f} {speedup['ci95']} against {gate['baseline']}")


def _print_trials(trials: Sequence[Mapping[str, Any]]) -> None:
    """What the gate built and measured, a row each, on standard error; nothing where it tried one engine."""
    from rich.console import Console
    from rich.table import Table

    table = Table("kept in float", "top-1 %", "points lost", "speedup")
    for row in trials:
        speedup = row.get("speedup") or row.get("over_int8")
        against = " over int8" if "over_int8" in row else ""
        table.add_row(
            str(row["float"]),
            f"{row['top1']:.2f}" if "top1" in row else "",
            f"{row['drop']:.2f}" if "drop" in row else "",
            f"{speedup['ratio']:.2f} {speedup['ci95']}{against}" if speedup else "",
        )
    if len(trials) > 1:
        Console(stderr=True).print(table)


def _runs(tokens: object) -> str:
    """Token counts with repeats folded: 197 x4, 137 x4, 97 x4."""
    from itertools import groupby

    assert isinstance(tokens, list)
    return ", ".join(f"{n} x{len(list(g))}" for n, g in groupby(tokens)) or "not known (no adapter)"

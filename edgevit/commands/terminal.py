"""What every verb shares: progress on standard error, JSON alone on standard output, argument types."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edgevit.commands.pace import Clock, Pace, left_text
from edgevit.progress import Progress

MOST_TOKENS = 1_000_000
EVERY_S = 30.0
"""Between two plain lines of one stage."""


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A progress display on standard error: a live line on a terminal, plain lines elsewhere; both say what is left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}
        paces: dict[str, Pace] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[what], paces[what] = bar.add_task(what, total=total or None, left=""), Pace()
            left = left_text(paces[what].left_s(done, total))
            bar.update(tasks[what], completed=done, total=total or None, visible=True, left=left)

        yield show


def _plain(clock: Clock = time.monotonic) -> Progress:
    """A line where a stage begins, and every EVERY_S one with what is left of it."""
    paces: dict[str, Pace] = {}
    said: dict[str, float] = {}

    def show(what: str, done: int, total: int) -> None:
        text = f"edgevit: {what}" + (f" ({total})" if total else "")
        if what in paces:
            left = left_text(paces[what].left_s(done, total))
            if not left or done >= total or clock() - said[what] < EVERY_S:
                return
            text = f"edgevit: {what}: {done} of {total}, {left}"
        else:
            paces[what] = Pace(clock)
            paces[what].left_s(done, total)
        said[what] = clock()
        print(text, file=sys.stderr)

    return show


def print_json(value: Any) -> None:
    """One JSON object on standard output; NaN would be no JSON, so it is an error here."""
    print(json.dumps(value, indent=2, allow_nan=False))


def note(text: str) -> None:
    """A remark for a person: standard error."""
    print(f"edgevit: {text}", file=sys.stderr)


def image_size(text: str) -> tuple[int, int]:
    """`N` or `NxM` → (height, width)."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not N or HEIGHTxWIDTH")
    return int(parts[0]), int(parts[-1])


def token_counts(text: str) -> tuple[float, ...]:
    """`N,N,...`, each tokens or a share below 1."""
    try:
        counts = tuple(float(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or not all(0 < n < 1 or (1 <= n <= MOST_TOKENS and n == int(n)) for n in counts):
        raise argparse.ArgumentTypeError(f"{text!r} is not N[,N...], numbers of tokens or shares below 1")
    return counts


def named_value(text: str) -> tuple[str, str]:
    """`NAME=VALUE` → both."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """MODEL and how to read it."""
    from pathlib import Path

    known = ".safetensors, .pt, .pth, .pt2, .onnx, timm:NAME, hf:FOLDER, hf:OWNER/NAME, torchvision:NAME, or demo"
    parser.add_argument("model", metavar="MODEL", help=known)
    parser.add_argument(
        "--arch",
        metavar="ARCH",
        help="architecture of a bare state dict: timm:NAME, torchvision:NAME, or dynamicvit:NAME and the like",
    )
    parser.add_argument("--input-size", type=image_size, metavar="N[xM]", help="image size, height x width")
    parser.add_argument("--preprocess", type=Path, metavar="FILE", help="JSON that overrides the model's preprocessing")
    parser.add_argument(
        "--keep", type=token_counts, metavar="N[,N...]", help="tokens that the masks of an .onnx file keep, or shares"
    )
    parser.add_argument("--trust-pickle", action="store_true", help="unpickle a whole module: runs code from the file")


def bytes_text(count: int) -> str:
    """Bytes for a person.

    >>> bytes_text(4_200_000), bytes_text(4_200)
    ('4.2 MB', '4.2 kB')
    """
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """With a header; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def print_table(table: Any) -> None:
    """A rich table on standard output, wide enough for its columns when that is no terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)

"""`edgevit bundle`: verify one, or compare two."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgevit.commands.terminal import print_json


def add_flags(parser: argparse.ArgumentParser) -> None:
    """`verify BUNDLE` and `diff A B`."""
    jobs = parser.add_subparsers(dest="job", metavar="JOB", required=True)
    verify = jobs.add_parser("verify", help="every file is the one that was exported")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify.add_argument(
        "--key", metavar="KEY", help="public ed25519 key, PEM file or hexadecimal: must be signed by it"
    )
    diff = jobs.add_parser("diff", help="what differs between two bundles")
    diff.add_argument("bundle", type=Path, metavar="A")
    diff.add_argument("other", type=Path, metavar="B")
    for job in (verify, diff):
        job.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Verify, or compare. A difference is a finding, not a failure: exit 0."""
    from edgevit.bundle import Bundle

    bundle = Bundle.load(arguments.bundle)
    if arguments.job == "verify":
        return _verify(bundle.folder, len(bundle.manifest["files"]), arguments)
    found = differences(bundle.manifest, Bundle.load(arguments.other).manifest)
    if arguments.json:
        print_json({"differences": found})
        return 0
    for row in found:
        print(f"{row['key']}: {_text(row['a'])} → {_text(row['b'])}")
    if not found:
        print("no difference")
    return 0


def _verify(folder: Path, files: int, arguments: argparse.Namespace) -> int:
    from edgevit.signing import read_public, verify

    public = read_public(arguments.key) if arguments.key else None
    if public:
        verify(folder, public)
    if arguments.json:
        print_json({"bundle": str(folder), "files": files, "signed_by": public})
    else:
        print(f"{folder}: {files} files are as exported" + (f", signed by {public}" if public else ""))
    return 0


def differences(a: Any, b: Any, key: str = "") -> list[dict[str, Any]]:
    """Rows {key, a, b} where two JSON values differ; None stands for what is not there. Objects are entered.

    >>> differences({"x": {"y": 1}, "z": 2}, {"x": {"y": 3}, "z": 2})
    [{'key': 'x.y', 'a': 1, 'b': 3}]
    """
    if a == b:
        return []
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [{"key": key, "a": a, "b": b}]
    rows = []
    for name in dict.fromkeys([*a, *b]):
        rows += differences(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    return rows


def _text(value: Any) -> str:
    """A value on one line, cut where it is long."""
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

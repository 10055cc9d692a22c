"""`edgevit embed`: a bundle into an app."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgevit.commands.terminal import bytes_text, note, print_json
from edgevit.embed import APPS


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of embed."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what export wrote")
    parser.add_argument("--app", required=True, choices=tuple(APPS), help="kind of app")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder of the app")
    parser.add_argument(
        "--sign", type=Path, metavar="KEY", help="private ed25519 key (PEM): the app takes no other bundle"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing app")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Write the app and print what its parts weigh."""
    from edgevit.embed.write import embed

    found = embed(arguments.bundle, arguments.app, arguments.out, arguments.force, arguments.sign)
    if arguments.json:
        print_json(found.to_json())
        return 0
    note(f"{found.app} app in {found.folder}; begin with its README.md")
    sizes = {"engine": found.engine_bytes, "loader": found.loader_bytes, "runtime": found.runtime_bytes}
    sizes["golden"] = found.test_bytes
    for name, size in sizes.items():
        shown = "not installed here" if size is None else bytes_text(size)
        print(f"{name:10} {shown}" + ("  (test data, not shipped)" if name == "golden" else ""))
    return 0

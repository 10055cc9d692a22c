"""The command line: one verb per job. Each verb is one file in edgevit/commands, imported only when it is called.

Exit status: 0 done, 1 a user can fix it (one line, no traceback), 2 bad arguments, 3 a gate failed, 130 interrupted.
Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from edgevit.errors import EdgeVitError
from edgevit.version import __version__

VERBS = {
    "export": "compile a model for a target: reduce its tokens, quantize it, check it",
    "tune": "search the best engine for a device and an accuracy, by measurement",
    "eval": "accuracy of compiled bundles on labelled images",
    "profile": "latency of bundles, on this machine or on a device",
    "embed": "put a bundle into an app: loader, preprocessing, test vectors",
    "bundle": "verify a bundle, or compare two",
    "inspect": "tokens per block, MACs, operators, picture of kept tokens",
    "targets": "what can be built and run here, and how to get the rest",
    "methods": "the token reduction methods and what they need",
    "history": "what was measured: list, filter, show one",
    "report": "a page, a CSV and pictures of what was measured",
    "devices": "your devices: list, add, check what is on them",
    "doctor": "this machine and its packages, as edgevit sees them",
    "demo": "the whole pipeline on the embedded model and images",
}


def parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The argument parser; flags are filled in for `verb` only, so that help starts fast."""
    top = argparse.ArgumentParser(prog="edgevit", description="Vision Transformers on real devices.")
    top.add_argument("--version", action="version", version=f"edgevit {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text in VERBS.items():
        sub = verbs.add_parser(name, help=text, description=text)
        if name == verb:
            import_module(f"edgevit.commands.{name}").add_flags(sub)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `edgevit` command; ends by SystemExit."""
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    verb = next((word for word in argv if not word.startswith("-")), None)
    arguments = parser(verb).parse_args(argv)
    try:
        status: int = import_module(f"edgevit.commands.{arguments.verb}").run(arguments)
    except EdgeVitError as error:
        print(f"edgevit: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("edgevit: interrupted; nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at exit
        return 1
    except OSError as error:
        return _os_error(error)
    return status


def _os_error(error: OSError) -> int:
    """A full disk, or a path that cannot be read or written, is the user's to fix; anything else is a bug."""
    import errno

    fixable = (
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EIO),
        *(errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    )
    if error.errno not in fixable:
        raise error
    where = f" ({error.filename})" if error.filename else ""
    print(f"edgevit: {error.strerror}{where}", file=sys.stderr)
    return 1

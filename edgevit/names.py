"""Names: help with those a user typed, and what those in a table stand for."""

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any


def named(path: str) -> Any:
    """The object that a table names as "module:attribute"; importing waits until it is asked for.

    >>> named("edgevit.names:listed").__name__
    'listed'
    """
    module, attribute = path.split(":")
    return getattr(import_module(module), attribute)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name, or an empty string.

    >>> did_you_mean("openvno", ["ort", "openvino"])
    ' (did you mean openvino?)'
    >>> did_you_mean("zzz", ["ort"])
    ''
    """
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def listed(names: Iterable[str], limit: int = 5) -> str:
    """The first few names, and how many more there are.

    >>> listed(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"

"""What long work reports: (what it is at, steps done, steps in all; 0 of 0 where nobody knows)."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""

"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, which becomes `path` when the block ends well and vanishes when it does not.

    Whoever reads meanwhile sees the old file or the new one. Raises OSError.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        with suppress(OSError):  # after an error there; the block's own error is the one to tell
            beside.unlink(missing_ok=True)

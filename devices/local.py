"""Transport `local`: this machine, with the interpreter and the folder that the user names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgevit.devices.transport import Done, call
from edgevit.errors import MeasureError


@dataclass(frozen=True)
class Local:
    """`python`: an interpreter. `work`: a folder, absolute."""

    python: str
    work: str

    def __post_init__(self) -> None:
        if not Path(self.work).is_absolute():
            raise MeasureError(f"work={self.work!r} must be an absolute path")

    @contextmanager
    def connect(self) -> Iterator[None]:
        """Nothing to do."""
        yield

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command itself."""
        return list(argv)

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = 60) -> Done:
        """Run it."""
        return call(argv, f"running {argv[0]}", stdin, timeout_s=timeout_s)

    def push(self, source: Path, target: str, timeout_s: float = 600) -> None:
        """Copy."""
        try:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise MeasureError(f"copying {source.name} to {target} failed: {error.strerror}") from error

    def pull(self, source: str, target: Path, timeout_s: float = 600) -> None:
        """Copy."""
        self.push(Path(source), str(target))

"""What guards touch the machine with: commands, as root where needed, and system files below `root`."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgevit.errors import MeasureError

SECONDS = 60.0
"""What a command may take."""


@dataclass(frozen=True)
class System:
    """folder: for what a command stores. root: `/`, or a made-up tree in tests."""

    folder: Path
    root: Path = Path("/")

    def run(self, argv: list[str], stdin: str = "", root: bool = False) -> str:
        """Standard output and error of a command. Raises MeasureError: it is missing, or did not end well."""
        sudo = ["sudo", "-n"] if root and os.geteuid() != 0 else []
        shown = " ".join(argv)
        try:
            done = subprocess.run(
                [*sudo, *argv],
                input=stdin.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MeasureError(f"{shown}: no end after {SECONDS:g} s, stopped") from error
        except OSError as error:
            raise MeasureError(f"{shown} does not start: {error.strerror}") from error
        text = done.stdout.decode("utf-8", "replace")
        if done.returncode:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            hint = (
                f"; allow it to {argv[0]} in /etc/sudoers.d, without a password" if sudo and "password" in text else ""
            )
            raise MeasureError(f"{shown} failed: {lines[-1] if lines else f'exit status {done.returncode}'}{hint}")
        return text

    def has(self, program: str) -> bool:
        """Whether there is such a program; "" always is."""
        return not program or shutil.which(program) is not None

    def keep(self, name: str) -> str:
        """A file of its own for what a command stores."""
        return str(self.folder / f"{name}.stored")

    def names(self, pattern: str) -> list[str]:
        """System files, by their path below `root`."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.glob(pattern))

    def text(self, name: str) -> str:
        """A system file's text. Raises MeasureError."""
        try:
            return (self.root / name).read_text("utf-8", "replace")
        except OSError as error:
            raise MeasureError(f"/{name} cannot be read: {error.strerror}") from error

    def write(self, name: str, text: str) -> None:
        """Write a system file. Raises MeasureError."""
        try:
            (self.root / name).write_text(text, "utf-8")
        except OSError as error:
            raise MeasureError(f"/{name} cannot be set to {text}: {error.strerror}; it needs root") from error

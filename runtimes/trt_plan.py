"""The header of an engine file: which TensorRT wrote it, read without TensorRT.

Bytes 0..3 are a magic number, `ftrt` (TensorRT) or `vtrt` (TensorRT-RTX); bytes 24..27 major, minor, patch and build of
the version that wrote it (since 8.6). A runtime of another version refuses the file, or worse: deserializing runs what
is in it. So the header is read first.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edgevit.errors import RuntimeRefusal

MAGIC = {b"ftrt": "TensorRT", b"vtrt": "TensorRT-RTX"}
SIZE = 28


class Header(NamedTuple):
    """What wrote a file."""

    product: str
    version: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.product} {'.'.join(map(str, self.version))}"


def read_header(path: Path) -> Header:
    """Raises RuntimeRefusal where the file is no engine."""
    with path.open("rb") as file:
        data = file.read(SIZE)
    if len(data) < SIZE or data[:4] not in MAGIC:
        raise RuntimeRefusal(f"{path} is no TensorRT engine: it begins with {data[:4]!r}; build it again")
    return Header(MAGIC[data[:4]], (data[24], data[25], data[26]))


def check_header(path: Path, product: str, installed: str) -> None:
    """Refuse an engine that another version wrote. installed: as the package names itself, `10.3.0` or `11.4.0.106`."""
    found = read_header(path)
    version = tuple(int(part) for part in installed.split(".")[:3])
    if found != (product, version):
        raise RuntimeRefusal(f"{path} was built by {found}, and here is {product} {installed}; build it again here")

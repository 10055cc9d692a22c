"""WebDataset shards → images and labels: POSIX tar, of each sample `KEY.jpg` (or another image) and `KEY.cls`.

Format: https://github.com/webdataset/webdataset. A key is a member's name up to the first dot of its last part; other
members of a key are ignored. Nothing is extracted: the index keeps where an image lies, and its bytes are read when
they are asked for.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edgevit.errors import DataError

SUFFIX = ".tar"
RANGE = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", re.DOTALL)
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
LABEL_BYTES = 32
"""A label is a number; a longer member is none."""
TAR_ERRORS = (tarfile.TarError, OSError, ValueError, LookupError, OverflowError, RecursionError, MemoryError)
"""What tarfile raises on damaged and hostile headers."""


class Member(NamedTuple):
    """An image in a shard: `size` bytes from `offset` on."""

    shard: Path
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.shard.name}:{self.member}"

    def __str__(self) -> str:
        return f"{self.shard}:{self.member}"

    def resolve(self) -> Member:
        """The same place, whatever the shard was called."""
        return self._replace(shard=self.shard.resolve())

    def open(self) -> io.BytesIO:
        """Its bytes. Raises OSError."""
        with self.shard.open("rb") as stream:
            stream.seek(self.offset)
            return io.BytesIO(stream.read(self.size))


def find_shards(path: Path) -> list[Path]:
    """The shards that `NAME.tar` or `NAME-{000000..000049}.tar` names; none where it is neither. Raises DataError."""
    found = RANGE.fullmatch(str(path))
    if path.suffix.lower() != SUFFIX or path.is_dir():
        return []
    if path.exists() or not found:
        return [path]
    before, first, last, after = found.groups()
    if int(first) > int(last):
        raise DataError(f"{path} names no shard: {first} comes after {last}")
    width = len(first) if first.startswith("0") else 1
    shards = []
    for number in range(int(first), int(last) + 1):
        shards.append(Path(f"{before}{number:0{width}d}{after}"))
        if not shards[-1].exists():
            raise DataError(f"{path} names {shards[-1]}, which does not exist")
    return shards


def index(shard: Path, suffixes: set[str]) -> list[tuple[Member, int]]:
    """Image and label of every sample, in the order of the shard. Raises DataError, with shard and member."""
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    for info, stream in _members(shard):
        parts = NAME.fullmatch(info.name)
        key, kind = parts.groups() if parts else ("", "")
        kind = kind.lower()
        if f".{kind}" in suffixes:
            if key in images:
                raise DataError(f"{shard}: {info.name} is a second image of the key {key}")
            images[key] = Member(shard, info.name, info.offset_data, info.size)
        elif kind == "cls":
            if key in labels:
                raise DataError(f"{shard}: {info.name} is a second label of the key {key}")
            labels[key] = _label(shard, info, stream)
    if not images:
        raise DataError(f"{shard} holds no images (expected KEY.jpg or the like, and KEY.cls with its label)")
    for key, image in images.items():
        if key not in labels:
            raise DataError(f"{image} has no label; the shard must hold {key}.cls")
    alone = next((key for key in labels if key not in images), None)
    if alone is not None:
        raise DataError(f"{shard}: {alone}.cls has no image; known are {', '.join(sorted(suffixes))}")
    return [(image, labels[key]) for key, image in images.items()]


def _members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """Regular members, of which none is kept; a shard that ends early, or holds anything else, is an error."""
    last = "its start"
    try:
        with shard.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            length, offset = os.fstat(stream.fileno()).st_size, -1
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                _check(shard, info)
                last = info.name
                end = info.offset_data + info.size
                if info.size < 0 or info.offset <= offset or end > length:  # a negative size would lead back
                    raise DataError(f"{shard}: {last} does not end within the file; copy the shard again")
                offset = info.offset
                if info.isreg():
                    yield info, stream
            _check_end(shard, last, stream, tar.offset)
    except FileNotFoundError as error:
        raise DataError(f"{shard} does not exist") from error
    except TAR_ERRORS as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{shard} cannot be read as a plain tar after {last} ({reason})") from error


def _check_end(shard: Path, last: str, stream: BinaryIO, offset: int) -> None:
    """Zeros, which tarfile does not ask for: it takes whatever is no header for the end."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    whole = len(block) == tarfile.BLOCKSIZE
    while block and whole:
        whole = not block.strip(tarfile.NUL)
        block = stream.read(1 << 20)
    if not whole:
        raise DataError(f"{shard} is damaged, cut off, or goes on, after {last}; write or copy the shard again")


def _check(shard: Path, info: tarfile.TarInfo) -> None:
    """Names for people, and bytes that lie where the header says."""
    if not info.name.isprintable():
        raise DataError(f"{shard}: the name {info.name!r} cannot be printed; rename the member")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise DataError(f"{shard}: {info.name} leaves the shard; names must be relative, without ..")
    if not (info.isreg() or info.isdir()) or info.issparse():
        raise DataError(f"{shard}: {info.name} is a link, a device or a sparse file; shards hold plain files")


def _label(shard: Path, info: tarfile.TarInfo, stream: BinaryIO) -> int:
    if info.size > LABEL_BYTES:
        raise DataError(f"{shard}: {info.name} holds {info.size} bytes, which is not a whole number")
    stream.seek(info.offset_data)  # tarfile finds its way back
    text = stream.read(info.size)
    try:
        return int(text)
    except ValueError as error:
        raise DataError(f"{shard}: {info.name} holds {text!r}, which is not a whole number") from error

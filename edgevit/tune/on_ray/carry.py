"""A bundle as bytes, between nodes that share no folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgevit.bundle import MANIFEST, REPORT, Bundle, staged


@dataclass(frozen=True)
class Packed:
    """A bundle's name and its files, by path inside the folder."""

    name: str
    files: Mapping[str, bytes]


def pack(bundle: Bundle) -> Packed:
    """Read a verified bundle. Raises OSError."""
    names = [*bundle.manifest["files"], MANIFEST, *([REPORT] if (bundle.folder / REPORT).exists() else [])]
    return Packed(bundle.name, {name: (bundle.folder / name).read_bytes() for name in names})


def unpack(packed: Packed, parent: Path) -> Bundle:
    """Write `parent/NAME`, whole or not at all, and verify it. Raises BundleError."""
    folder = parent / packed.name
    with staged(folder, force=True) as place:
        for name, data in packed.files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
    return Bundle.load(folder)

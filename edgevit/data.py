"""DATA → images and labels: a CSV with `file,label`, an ImageFolder directory, or WebDataset shards."""

from __future__ import annotations

import csv
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.data_tar import SUFFIX, Member, find_shards, index
from edgevit.errors import DataError
from edgevit.preprocess import Preprocess
from edgevit.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

ImageFile = Path | Member

FORMS = "DATA is a CSV with columns file,label, a folder of class folders, or .tar shards"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
# What Pillow's decoders raise on damaged files, each seen from one of them.
DECODE_ERRORS = (OSError, ValueError, SyntaxError, LookupError, TypeError, EOFError, struct.error, zlib.error)


@dataclass(frozen=True)
class Dataset:
    """Labelled image files; images are decoded one at a time, so memory does not grow with their number."""

    name: str
    files: tuple[ImageFile, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def head(self, count: int) -> Dataset:
        """The first `count` images."""
        return Dataset(self.name, self.files[:count], self.labels[:count])

    def tensors(self, preprocess: Preprocess, batch: int) -> Iterator[np.ndarray[Any, Any]]:
        """Batches `[batch, 3, H, W]` in file order; the last is padded by repeating its last image."""
        import numpy as np

        for start in range(0, len(self.files), batch):
            images = [preprocess.tensor(open_image(f)) for f in self.files[start : start + batch]]
            images += [images[-1]] * (batch - len(images))
            yield np.stack(images)

    def check_labels(self, classes: int) -> None:
        """Every label must be one of the model's classes."""
        for file, label in zip(self.files, self.labels, strict=True):
            if not 0 <= label < classes:
                raise DataError(
                    f"{self.name}: label {label} of {file.name} is out of range; the model has {classes} classes, "
                    f"labels are 0 to {classes - 1}"
                )


def open_image(path: ImageFile) -> Image.Image:
    """Decode one image completely; a broken one is an error with its path."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path if isinstance(path, Path) else path.open()) as image:
            image.load()
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"image {path} cannot be decoded (no known image format); replace the file or take it out"
        ) from error
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"image {path} cannot be decoded ({reason}); replace the file or take it out") from error


def read_dataset(path: Path, progress: Progress | None = None) -> Dataset:
    """Read DATA; raises DataError when it is missing, empty or malformed. progress: of many shards."""
    if shards := find_shards(path):
        return _read_shards(path, shards, progress)
    if path.is_dir():
        return _read_folder(path, progress)
    if not path.exists():
        raise DataError(f"{path} does not exist; {FORMS}")
    return _read_csv(path)


def _read_csv(path: Path) -> Dataset:
    files, labels = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            missing = [c for c in ("file", "label") if c not in (rows.fieldnames or [])]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}; its first line must name file and label")
            for row in rows:
                files.append(path.parent / _text(row["file"], path, rows.line_num))
                labels.append(_label(row["label"], path, rows.line_num))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file; {FORMS}") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if not files:
        raise DataError(f"{path} lists no images")
    absent = next((f for f in files if not f.exists()), None)
    if absent is not None:
        raise DataError(f"{path} lists {absent}, which does not exist (paths are relative to the CSV's folder)")
    return Dataset(str(path), tuple(files), tuple(labels))


def _text(value: str | None, path: Path, line: int) -> str:
    if not value:
        raise DataError(f"{path} line {line}: the file name is empty")
    return value


def _label(value: str | None, path: Path, line: int) -> int:
    try:
        return int(value or "")
    except ValueError as error:
        raise DataError(f"{path} line {line}: label {value!r} is not a whole number") from error


def _read_folder(path: Path, progress: Progress | None) -> Dataset:
    """ImageFolder: one folder per class, classes numbered in sorted order. Or its shards, in sorted order."""
    classes = sorted(p for p in path.iterdir() if p.is_dir())
    pairs = [
        (file, label)
        for label, folder in enumerate(classes)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    shards = sorted(p for p in path.iterdir() if p.suffix.lower() == SUFFIX and p.is_file())
    if pairs and shards:
        raise DataError(f"{path} holds class folders and {shards[0].name}; give {shards[0]}, or move it elsewhere")
    if shards:
        return _read_shards(path, shards, progress)
    if not pairs:
        raise DataError(f"{path} holds no class folders with images (expected {path}/CLASS/image.jpg), and no shards")
    return Dataset(str(path), tuple(f for f, _ in pairs), tuple(label for _, label in pairs))


def _read_shards(path: Path, shards: Sequence[Path], progress: Progress | None) -> Dataset:
    pairs: list[tuple[Member, int]] = []
    for done, shard in enumerate(shards, start=1):
        pairs += index(shard, IMAGE_SUFFIXES)
        if progress and len(shards) > 1:
            progress(f"read the index of {path.name}", done, len(shards))
    return Dataset(str(path), tuple(f for f, _ in pairs), tuple(label for _, label in pairs))

"""A bundle: the directory an export leaves. Engine files, manifest.json, report.json.

The manifest names every file with its sha256; a bundle is verified before it is opened, and nothing in it is executed.
Writing goes to a folder beside the target and is renamed when complete, so an interrupted or failed run leaves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import BundleError
from edgevit.files import whole
from edgevit.hashes import sha256_file
from edgevit.preprocess import Preprocess
from edgevit.stages import Engine, InputSpec

SCHEMA = 1
FULL_BYTES = 2**18  # less free space than this is a full disk to any engine
MANIFEST, REPORT = "manifest.json", "report.json"
REQUIRED = (
    "schema", "edgevit", "model", "schedule", "precision", "target", "runtime", "input", "output", "preprocess",
    "entry", "files", "check", "kept_float",
)  # fmt: skip
NESTED = {
    "model": ("name",),
    "schedule": ("text", "tokens", "macs"),
    "runtime": ("name", "version", "options"),
    "input": ("name", "shape"),
    "output": ("shape",),
    "preprocess": ("size",),
    "files": (),
}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read and verify: schema, required keys, the sha256 of every file. Raises BundleError."""
        manifest = _read_manifest(folder)
        for name, digest in manifest["files"].items():
            if not _inside(name):
                raise BundleError(f"{folder}: the manifest names {name!r}, which is not a path inside the bundle")
            path = folder / name
            if not path.is_file() or _has_link(folder, name):
                raise BundleError(f"{folder} is incomplete: {name} is missing; export it again")
            if sha256_file(path) != digest:
                raise BundleError(
                    f"{folder}: {name} is not the file that was exported (sha256 differs); export it again"
                )
        entry = str(manifest["entry"])
        if not any(name == entry or name.startswith(f"{entry}/") for name in manifest["files"]):
            raise BundleError(f"{folder}: entry {manifest['entry']!r} is not among the files; export it again")
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name or str(self.folder)

    @property
    def engine(self) -> Engine:
        """The engine as its runtime wants it."""
        m = self.manifest
        batch, _, height, width = m["input"]["shape"]
        return Engine(
            folder=self.folder,
            runtime=m["runtime"]["name"],
            runtime_version=m["runtime"]["version"],
            precision=m["precision"],
            entry=m["entry"],
            files=tuple(m["files"]),
            inputs=InputSpec(batch, height, width, m["input"]["name"]),
            options=m["runtime"]["options"],
        )

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing that accuracy was measured with."""
        return Preprocess.from_dict(self.manifest["preprocess"])

    @property
    def classes(self) -> int:
        """Width of the output."""
        return int(self.manifest["output"]["shape"][-1])

    @property
    def size_bytes(self) -> int:
        """Bytes of the engine files."""
        return sum((self.folder / f).stat().st_size for f in self.manifest["files"])


def _inside(name: str) -> bool:
    """Whether a name is a plain relative path with forward slashes that never leaves its folder."""
    parts = name.split("/")
    return "\\" not in name and ":" not in name and all(part not in ("", ".", "..") for part in parts)


def _has_link(folder: Path, name: str) -> bool:
    """Whether the file, or a folder between the bundle and it, is a link."""
    path = folder / name
    return any((folder / part).is_symlink() for part in [name, *map(str, path.relative_to(folder).parents)][:-1])


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a bundle: BUNDLE is the directory that `edgevit export` wrote")
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); export it again") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        given = manifest.get("schema") if isinstance(manifest, dict) else None
        raise BundleError(f"{path} has schema {given!r}; this edgevit reads schema {SCHEMA}")
    missing = [key for key in REQUIRED if key not in manifest]
    for key, inner in NESTED.items():
        value = manifest.get(key)
        missing += [f"{key}.{name}" for name in inner if not isinstance(value, dict) or name not in value]
    if missing:
        raise BundleError(f"{path} lacks {', '.join(missing)}; export it again")
    shape = manifest["input"]["shape"]
    if not isinstance(shape, list) or len(shape) != 4 or not manifest["output"]["shape"]:
        raise BundleError(f"{path} has the input shape {shape}, expected [batch, 3, height, width]; export it again")
    if not isinstance(manifest["files"], dict) or not manifest["files"]:
        raise BundleError(f"{path} must map file names to sha256 in `files`; export it again")
    return manifest


@contextlib.contextmanager
def staged(out: Path, force: bool, mark: str = MANIFEST, what: str = "bundle") -> Iterator[Path]:
    """A new folder that becomes `out` when the block ends well, and vanishes when it does not.

    An existing `out` is replaced only with `force`, only if it is empty or holds the file `mark`, and only at the very
    end. what: its name in errors. Raises BundleError, also for a full disk.
    """
    if out.exists() and not force:
        raise BundleError(f"{out} exists; give another -o, or --force to replace it")
    if out.exists() and not (out.is_dir() and ((out / mark).exists() or not any(out.iterdir()))):
        raise BundleError(f"{out} exists and is no {what}; --force replaces {what}s only")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise BundleError(f"cannot write beside {out}: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        if out.exists():
            old = folder.with_name(folder.name + "-old")
            out.rename(old)
            try:
                folder.rename(out)
            except BaseException:
                old.rename(out)  # the new one could not take the place: the old one keeps it
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            folder.rename(out)
    except BaseException as error:
        # A vendor's writer may say no more than "iostream error": then the disk itself is asked, before the clean-up.
        full = full_disk(error) or (isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < FULL_BYTES)
        shutil.rmtree(folder, ignore_errors=True)
        if full:
            free = shutil.disk_usage(out.parent).free // 2**20
            raise BundleError(
                f"no space left on the disk of {out.parent} ({free} MiB free); nothing was written"
            ) from error
        raise


def full_disk(error: BaseException) -> bool:
    """True when an error, or what caused it, is a full disk; vendor writers wrap it in errors of their own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    with whole(path) as beside:
        beside.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n", encoding="utf-8")

"""An image → its likeliest classes, by a compiled engine.

Nothing of a bundle is used before it is verified: schema, the sha256 of every file, runtime and version, machine and
sizes.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from edgevit.embed.app_python import engine_ort as engine
from edgevit.embed.app_python import trusted
from edgevit.embed.app_python.errors import DataError, Refused
from edgevit.preprocess import Preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
SCHEMA = 1
AGAIN = "export and embed it again"


@dataclass(frozen=True)
class Prediction:
    """A class: its number, name, raw score, and share of the softmax (0 to 1)."""

    index: int
    label: str
    score: float
    share: float


class Classifier:
    """A verified bundle with its engine, ready to run.

    threads: of the runtime; None leaves them to it. any_version: accept another version of the runtime than the one
    that accuracy was measured with. Raises Refused.
    """

    def __init__(self, bundle: Path = BUNDLE, threads: int | None = None, any_version: bool = False) -> None:
        manifest = read_manifest(bundle)
        try:
            _check_runtime(manifest, any_version)
            self.preprocess = Preprocess.from_dict(manifest["preprocess"])
            self.labels = _labels(bundle, manifest)
            _check_sizes(manifest, self.preprocess, self.labels)
            self.engine = engine.Engine(bundle, manifest, threads)
            self.shape, self.classes = tuple(manifest["input"]["shape"]), int(manifest["output"]["shape"][-1])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise Refused(f"{bundle / 'manifest.json'} is incomplete or malformed ({error!r}); {AGAIN}") from error
        if self.engine.shape != self.shape:
            raise Refused(f"the engine takes {self.engine.shape}, the manifest says {self.shape}; {AGAIN}")

    def tensor(self, image: Image.Image) -> NDArray[np.float32]:
        """Image → float32 `[1, 3, H, W]`, as accuracy was measured."""
        return self.preprocess.tensor(image)[None]

    def scores(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 `[1, 3, H, W]` → raw scores `[classes]`."""
        if tensor.shape != self.shape or tensor.dtype != np.float32:
            raise DataError(f"the engine takes float32 {self.shape}, got {tensor.dtype} {tensor.shape}")
        found: NDArray[np.float32] = self.engine.run(np.ascontiguousarray(tensor))
        if found.shape != (1, self.classes):
            raise Refused(f"the engine gave {found.shape}, the manifest says (1, {self.classes}); {AGAIN}")
        if not np.isfinite(found).all():
            raise Refused("the engine gave NaN or infinite scores")
        scores: NDArray[np.float32] = found[0]
        return scores

    def run(self, image: Image.Image | Path, top: int = 5) -> list[Prediction]:
        """The `top` likeliest classes, best first; equal scores stand in class order."""
        return self.run_tensor(self.tensor(open_image(image) if isinstance(image, Path) else image), top)

    def run_tensor(self, tensor: NDArray[np.float32], top: int = 5) -> list[Prediction]:
        """The same for an image that is float32 `[1, 3, H, W]` already, such as `tensor` gives."""
        if top < 1:
            raise DataError(f"top={top} must be 1 or more")
        scores = self.scores(tensor)
        powers = np.exp(scores - scores.max())
        shares = powers / powers.sum()
        best = np.argsort(-scores, kind="stable")[:top]
        return [Prediction(int(i), self.labels[i], float(scores[i]), float(shares[i])) for i in best]


def open_image(path: Path) -> Image.Image:
    """Decode one image completely, colours as stored, not turned by a camera's mark: as accuracy was measured."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, EOFError, Image.DecompressionBombError) as error:
        what = "is no image" if isinstance(error, UnidentifiedImageError) else f"cannot be read ({error})"
        raise DataError(f"{path} {what}") from error


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of a trusted bundle whose files all have the sha256 it names. Raises Refused."""
    path = bundle / "manifest.json"
    try:
        data = path.read_bytes()
        trusted.check(bundle, data)
        manifest = json.loads(data.decode("utf-8"))
    except FileNotFoundError as error:
        raise Refused(f"{bundle} is not a bundle: it has no manifest.json") from error
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read ({error}); {AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        given = manifest.get("schema") if isinstance(manifest, dict) else None
        raise Refused(f"{path} has schema {given!r}; this loader reads schema {SCHEMA}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise Refused(f"{path} names no files; {AGAIN}")
    for name, digest in files.items():
        _check_file(bundle, name, digest)
    entry = str(manifest.get("entry"))
    if not any(name == entry or name.startswith(f"{entry}/") for name in files):
        raise Refused(f"{path}: entry {entry!r} is not among its files; {AGAIN}")
    return manifest


def _check_file(bundle: Path, name: str, digest: str) -> None:
    parts = name.split("/")
    if "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts):
        raise Refused(f"{bundle}: the manifest names {name!r}, which is not a path inside the bundle")
    path = bundle / name
    linked = any(bundle.joinpath(*parts[: n + 1]).is_symlink() for n in range(len(parts)))
    if linked or not path.is_file():
        raise Refused(f"{bundle} is incomplete: {name} is missing; {AGAIN}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise Refused(f"{bundle}: {name} is not the file that was exported (sha256 differs); {AGAIN}")


def _check_runtime(manifest: dict[str, Any], any_version: bool) -> None:
    """The engine is for this runtime, this version of it, and this kind of machine."""
    target = manifest["target"]
    if target != engine.TARGET:
        raise Refused(f"the bundle is for {target}, this app runs {engine.TARGET}; embed that bundle again")
    built, here = engine.release(manifest["runtime"]["version"]), engine.version()
    if built != here and not any_version:
        line = f"pip install {engine.PACKAGE}=={built}"
        raise Refused(
            f"the engine was built and checked with {engine.PACKAGE} {built}, here is {here}: {line}, "
            "or accept it (any_version) after you evaluated it"
        )
    machine = manifest.get("built_on", {}).get("machine", "")
    if engine.MACHINE_BOUND and manifest["precision"].startswith("int8") and machine != platform.machine():
        raise Refused(
            f"the {manifest['precision']} engine was built for {machine or 'an unknown machine'}, this is "
            f"{platform.machine()}, whose 8-bit sums may differ; export it there"
        )


def _labels(bundle: Path, manifest: dict[str, Any]) -> list[str]:
    """A name a class; without labels their numbers."""
    name, classes = manifest.get("labels"), int(manifest["output"]["shape"][-1])
    if name is None:
        return [f"class {i}" for i in range(classes)]
    if name not in manifest["files"]:
        raise Refused(f"labels {name!r} are not among the files of the manifest; {AGAIN}")
    return Path(bundle, str(name)).read_text(encoding="utf-8").splitlines()


def _check_sizes(manifest: dict[str, Any], preprocess: Preprocess, labels: list[str]) -> None:
    """One image of the prepared size goes in, one score a label comes out."""
    shape, output = list(manifest["input"]["shape"]), list(manifest["output"]["shape"])
    wanted = [1, 3, *preprocess.size]
    if shape != wanted:
        raise Refused(f"the input is {shape}, preprocessing makes {wanted}; {AGAIN}")
    if len(output) != 2 or output[0] != 1 or len(labels) != output[1]:
        raise Refused(f"the output is {output} and there are {len(labels)} labels, expected [1, labels]; {AGAIN}")

"""`model.onnx` from anywhere → Checkpoint: read as hostile, cleaned, imported, proven equal to the file."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.preprocess import Preprocess
from edgevit.stages import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from edgevit.data import Dataset
    from edgevit.from_onnx.keep import Keep
    from edgevit.from_onnx.program import ForeignModel
    from edgevit.from_onnx.read import Foreign

MOST_IMAGES = 256  # that counts are taken from
ONNX_OUTPUT = ".onnx#"  # model.onnx#NAME: one of several outputs


def onnx_output(model: str) -> tuple[Path, str | None] | None:
    """`model.onnx` or `model.onnx#OUTPUT` → the file and the output to keep; None for another MODEL."""
    name, _, output = model.partition(ONNX_OUTPUT)
    if output:
        return Path(name + ".onnx"), output
    return (Path(model), None) if model.lower().endswith(".onnx") else None


def load_onnx(
    path: Path,
    output: str | None,
    input_size: tuple[int, int] | None,
    preprocess: Preprocess | None = None,
    keep: tuple[float, ...] | None = None,
    calib: Dataset | None = None,
) -> Checkpoint:
    """Load an ONNX file that takes one image. output: the one to keep, where there are several.

    input_size: (height, width), for a file that takes any. keep, calib: how many tokens its masks keep, where it has
    some (`edgevit.from_onnx.keep`). Raises LoadError, MissingExtra.
    """
    from edgevit.from_onnx.read import read

    foreign = read(path)  # first: it says what is not installed

    from edgevit.check import check_images
    from edgevit.from_onnx.fix_input import fix_input
    from edgevit.from_onnx.keep import Keep
    from edgevit.from_onnx.prove import agreement, prove, prove_masked
    from edgevit.hashes import sha256_file
    from edgevit.load import check_finite

    foreign = fix_input(foreign, input_size, output)
    assert foreign.ends is not None
    size = foreign.ends.size
    images, _ = check_images(Preprocess(size=size), None)
    likely: Iterable[np.ndarray] = images
    if calib is not None:  # read where there are masks
        tensors = calib.tensors(replace(preprocess or Preprocess(size=size), size=size), 1)
        likely = (one[0] for one in islice(tensors, MOST_IMAGES))
    decided = Keep(keep, likely, calib is not None)
    module, passes = _imported(foreign, decided)
    check_finite(str(path), module.state_dict())
    origin: dict[str, Any] = {
        "producer": f"{foreign.model.producer_name} {foreign.model.producer_version}".strip(),
        "opset": foreign.opset,
        "passes": passes,
    }
    if decided.masks:
        origin["equal"] = prove_masked(path, _alone(path, size, output, images))
        origin["masks"] = decided.masks
        origin["agreement"] = agreement(path, module, decided.seen)
    else:
        origin["equal"] = prove(path, module, images)
    digest = sha256_file(path, *foreign.files)
    return Checkpoint(path.stem, None, digest, Preprocess(size=size), path, module, origin=origin)


def _alone(
    path: Path, size: tuple[int, int], output: str | None, images: list[np.ndarray]
) -> Iterator[tuple[np.ndarray, ForeignModel]]:
    """Images, each with the module of its own counts."""
    from edgevit.from_onnx.fix_input import fix_input
    from edgevit.from_onnx.keep import Keep
    from edgevit.from_onnx.read import read

    for image in images:
        keep = Keep(None, [image], calibrated=True)
        module, _ = _imported(fix_input(read(path), size, output), keep)
        if keep.exact:
            yield image, module


def _imported(foreign: Foreign, keep: Keep) -> tuple[ForeignModel, dict[str, int]]:
    """The module of a file, and which passes matched. foreign: read anew, for the passes change it."""
    from edgevit.from_onnx.clean import clean
    from edgevit.from_onnx.program import build

    foreign = replace(foreign, keep=keep)
    passes = clean(foreign)
    return build(foreign), passes

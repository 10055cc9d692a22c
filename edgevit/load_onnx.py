"""`model.onnx` from anywhere → Checkpoint: read as hostile, cleaned, imported, proven equal to the file."""

from __future__ import annotations

from pathlib import Path

from edgevit.preprocess import Preprocess
from edgevit.stages import Checkpoint

ONNX_OUTPUT = ".onnx#"  # model.onnx#NAME: one of several outputs


def onnx_output(model: str) -> tuple[Path, str | None] | None:
    """`model.onnx` or `model.onnx#OUTPUT` → the file and the output to keep; None for another MODEL."""
    name, _, output = model.partition(ONNX_OUTPUT)
    if output:
        return Path(name + ".onnx"), output
    return (Path(model), None) if model.lower().endswith(".onnx") else None


def load_onnx(path: Path, output: str | None, input_size: tuple[int, int] | None) -> Checkpoint:
    """Load an ONNX file that takes one image. output: the one to keep, where there are several.

    input_size: (height, width), for a file that takes any. Raises LoadError, MissingExtra.
    """
    from edgevit.from_onnx.read import read

    foreign = read(path)  # first: it says what is not installed

    from edgevit.check import check_images
    from edgevit.from_onnx.clean import clean
    from edgevit.from_onnx.fix_input import fix_input
    from edgevit.from_onnx.program import build
    from edgevit.from_onnx.prove import prove
    from edgevit.hashes import sha256_file
    from edgevit.load import check_finite

    foreign = fix_input(foreign, input_size, output)
    passes = clean(foreign)
    module = build(foreign)
    check_finite(str(path), module.state_dict())
    preprocess = Preprocess(size=module.ends.size)
    images, _ = check_images(preprocess, None)
    origin = {
        "producer": f"{foreign.model.producer_name} {foreign.model.producer_version}".strip(),
        "opset": foreign.opset,
        "passes": passes,
        "equal": prove(path, module, images),
    }
    return Checkpoint(path.stem, None, sha256_file(path, *foreign.files), preprocess, path, module, origin=origin)

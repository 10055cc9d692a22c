"""The imported module against the file itself in ONNX Runtime, on images."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from edgevit.distance import relative_error
from edgevit.errors import LoadError
from edgevit.load_timm import first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np
    import torch

    from edgevit.from_onnx.fix_input import Ends
    from edgevit.from_onnx.program import ForeignModel

TOLERANCE = 1e-4  # relative to the largest output: the same operators in float32, sums in another order
TOLERANCE_HALF = 2e-2  # the file computes in float16, the module in float32
IMAGES = 4
MASKED_IMAGES = 2  # each imports the file again


def prove(path: Path, module: ForeignModel, images: list[np.ndarray]) -> dict[str, Any]:
    """Compare on the images `[3, H, W]`, at batch 1 and, where the file takes any batch, 2. Raises LoadError.

    A file that says it takes any batch and was written for one is taken for that one: `module.batch` is set.
    """
    session = session_of(str(path), path.name)
    images = images[:IMAGES]
    worst = 0.0
    batch = module.batch or 1
    for first in range(len(images)):
        stack = _stack(images, first, batch)
        worst = max(worst, _compare(path, session, module, stack))
    if module.batch is None and not _takes(session, module, _stack(images, 0, 2)):
        module.batch = 1  # for which proof there is
    elif module.batch is None:
        worst = max(worst, _compare(path, session, module, _stack(images, 0, 2)))
    return {"max_relative_error": worst, "images": len(images), "runtime": f"onnxruntime {_version()}"}


def prove_masked(path: Path, alone: Iterable[tuple[np.ndarray, ForeignModel]]) -> dict[str, Any]:
    """As `prove`, where token counts depend on the image. alone: images, each with the module of its own counts."""
    session = session_of(str(path), path.name)
    errors = [_compare(path, session, module, _stack([image], 0, 1)) for image, module in islice(alone, MASKED_IMAGES)]
    if not errors:
        raise LoadError(
            f"{path.name}: on every picture tried a mask keeps no token, or leaves none; there is nothing to prove by; "
            "pass --preprocess that fits the model"
        )
    return {"max_relative_error": max(errors), "images": len(errors), "runtime": f"onnxruntime {_version()}"}


def agreement(path: Path, module: ForeignModel, images: Sequence[np.ndarray]) -> dict[str, Any]:
    """How the file with its own counts, and the module with fixed ones, answer on the images.

    Where the output is the tokens themselves, the images whose count is another one are not compared; None for none.
    """
    import torch

    session = session_of(str(path), path.name)
    same, differences = 0, []
    for image in images:
        stack = _stack([image], 0, 1)
        with torch.no_grad():
            want, got = _run(session, module, stack), module(stack)
        if want.shape == got.shape:
            same += bool(torch.equal(want.argmax(-1), got.argmax(-1)))
            differences.append(relative_error(got, want))
    count = len(differences)
    top1 = 100 * same / count if count else None
    return {"top1_percent": top1, "max_relative_difference": max(differences, default=None), "images": count}


def _version() -> str:
    from edgevit.runtimes.ort import import_ort

    return str(import_ort().__version__)


def session_of(file: str | bytes, name: str) -> Any:
    """A session of the file as it is written, nothing optimized. Raises LoadError."""
    from edgevit.runtimes.ort import import_ort

    ort = import_ort()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # the file as written
    try:
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime raises a dozen private exception classes that share no base but Exception
        raise LoadError(f"{name}: ONNX Runtime cannot load it: {first_line(error)}") from error


def _stack(images: list[np.ndarray], first: int, batch: int) -> torch.Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([images[(first + i) % len(images)] for i in range(batch)]))


def _run(session: Any, module: ForeignModel, images: torch.Tensor) -> torch.Tensor:
    """The file's own output, as float32."""
    import numpy as np
    import torch

    output = session.run([module.ends.output], {module.ends.image: feed(module.ends, images.numpy())})[0]
    return torch.from_numpy(np.asarray(output, dtype=np.float32))


def feed(ends: Ends, images: np.ndarray) -> np.ndarray:
    """Images `[B, 3, H, W]` as the file takes them."""
    import numpy as np
    from onnx import helper

    array = images.transpose(0, 2, 3, 1) if ends.last else images
    return np.ascontiguousarray(array.astype(helper.tensor_dtype_to_np_dtype(ends.kind)))


def _takes(session: Any, module: ForeignModel, images: torch.Tensor) -> bool:
    """Whether the file itself runs these images: many that name their batch `N` hold a 1 somewhere inside."""
    try:
        _run(session, module, images)
    except Exception:  # onnxruntime's classes share no other base; whatever the reason, batch 1 ran
        return False
    return True


def _compare(path: Path, session: Any, module: ForeignModel, images: torch.Tensor) -> float:
    import torch

    try:
        want = _run(session, module, images)
    except Exception as error:  # as above
        raise LoadError(f"{path.name}: ONNX Runtime cannot run it: {first_line(error)}") from error
    with torch.no_grad():
        got = module(images)
    if want.shape != got.shape:
        raise LoadError(f"{path.name}: imported, it gives {list(got.shape)}; ONNX Runtime gives {list(want.shape)}")
    off = relative_error(got, want)
    limit = TOLERANCE_HALF if module.ends.half else TOLERANCE
    if not off <= limit:
        raise LoadError(
            f"{path.name}: imported, its outputs differ from ONNX Runtime's by {off:.1e} (limit {limit:g}); this is "
            "a bug in the importer: report it with the file"
        )
    return off

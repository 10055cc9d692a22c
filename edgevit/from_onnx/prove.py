"""The imported module against the file itself in ONNX Runtime, on images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgevit.distance import relative_error
from edgevit.errors import LoadError
from edgevit.load_timm import first_line

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

    from edgevit.from_onnx.program import ForeignModel

TOLERANCE = 1e-4  # relative to the largest output: the same operators in float32, sums in another order
TOLERANCE_HALF = 2e-2  # the file computes in float16, the module in float32
IMAGES = 4


def prove(path: Path, module: ForeignModel, images: list[np.ndarray]) -> dict[str, Any]:
    """Compare on the images `[3, H, W]`, at batch 1 and, where the file takes any batch, 2. Raises LoadError.

    A file that says it takes any batch and was written for one is taken for that one: `module.batch` is set.
    """
    session = _session(path)
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


def _version() -> str:
    from edgevit.runtimes.ort import import_ort

    return str(import_ort().__version__)


def _session(path: Path) -> Any:
    from edgevit.runtimes.ort import import_ort

    ort = import_ort()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # the file as written
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime raises a dozen private exception classes that share no base but Exception
        raise LoadError(f"{path.name}: ONNX Runtime cannot load it: {first_line(error)}") from error


def _stack(images: list[np.ndarray], first: int, batch: int) -> torch.Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([images[(first + i) % len(images)] for i in range(batch)]))


def _run(session: Any, module: ForeignModel, images: torch.Tensor) -> torch.Tensor:
    """The file's own output, as float32."""
    import numpy as np
    import torch
    from onnx import helper

    array = images.permute(0, 2, 3, 1).numpy() if module.ends.last else images.numpy()
    feed = np.ascontiguousarray(array.astype(helper.tensor_dtype_to_np_dtype(module.ends.kind)))
    output = session.run([module.ends.output], {module.ends.image: feed})[0]
    return torch.from_numpy(np.asarray(output, dtype=np.float32))


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

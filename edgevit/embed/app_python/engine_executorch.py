"""The engine in ExecuTorch, on the CPU. Its Python package takes torch tensors, and brings torch."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.embed.app_python.errors import Refused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TARGET, PACKAGE = "executorch", "executorch"
MACHINE_BOUND = False  # its int8 sums are exact on every CPU


def version() -> str:
    """Of the installed runtime."""
    try:
        return release(metadata.version(PACKAGE))
    except metadata.PackageNotFoundError as error:
        raise Refused(f"this app needs {PACKAGE}: pip install -r requirements.txt") from error


def release(built: str) -> str:
    """The comparable part of the manifest's version, which may carry a build behind it."""
    return built.split("+")[0]


class Engine:
    """A loaded method. shape: of its input, `(1, 3, H, W)`."""

    def __init__(self, bundle: Path, manifest: dict[str, Any], threads: int | None) -> None:
        try:
            import torch  # its libraries must be loaded before the runtime's
            from executorch.extension.pybindings import _C as runtime
        except ImportError as error:
            raise Refused(f"{PACKAGE} does not load ({error}): pip install -r requirements.txt") from error
        if threads:
            runtime._unsafe_reset_threadpool(threads)
        path = bundle / manifest["entry"]
        try:
            self._method = runtime._load_program(str(path)).load_method("forward")
        except RuntimeError as error:
            raise Refused(f"{PACKAGE} cannot load {path.name}: {error}") from error
        self._tensor = torch.from_numpy
        self.shape = tuple(self._method.method_meta().input_tensor_meta(0).sizes())

    def run(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 `[1, 3, H, W]` → scores `[1, classes]`."""
        out: NDArray[np.float32] = self._method([self._tensor(tensor)])[0].numpy()
        return out

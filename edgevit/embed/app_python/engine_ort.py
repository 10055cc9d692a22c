"""The engine in ONNX Runtime, on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.embed.app_python.errors import Refused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TARGET, PACKAGE = "ort", "onnxruntime"
MACHINE_BOUND = True  # an int8 engine's weights fit the sums of the CPU it was built on


def version() -> str:
    """Of the installed runtime."""
    return str(_onnxruntime().__version__)


def release(built: str) -> str:
    """The comparable part of the manifest's version."""
    return built


def _onnxruntime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # 1.29 and later switch it on at import
    try:
        import onnxruntime
    except ImportError as error:
        raise Refused(f"this app needs {PACKAGE} ({error}): pip install -r requirements.txt") from error
    return onnxruntime


class Engine:
    """One session. shape: of its input, `(1, 3, H, W)`."""

    def __init__(self, bundle: Path, manifest: dict[str, Any], threads: int | None) -> None:
        ort = _onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        for key, value in manifest["runtime"]["options"].get("session_config", {}).items():
            options.add_session_config_entry(key, value)
        path = bundle / manifest["entry"]
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception classes share no other base
            raise Refused(f"{PACKAGE} cannot load {path.name}: {error}") from error
        taken = self._session.get_inputs()[0]
        self._name, self.shape = taken.name, tuple(taken.shape)

    def run(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 `[1, 3, H, W]` → scores `[1, classes]`."""
        out: NDArray[np.float32] = self._session.run(None, {self._name: tensor})[0]
        return out

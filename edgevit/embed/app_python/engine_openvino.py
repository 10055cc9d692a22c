"""The engine in OpenVINO, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.embed.app_python.errors import Refused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TARGET, PACKAGE = "openvino", "openvino"
MACHINE_BOUND = True  # an int8 engine's weights fit the sums of the CPU it was built on
CAPABILITY = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


def version() -> str:
    """Of the installed runtime."""
    return release(str(_openvino().__version__))


def release(built: str) -> str:
    """The comparable part of the manifest's version, which carries build and branch behind it."""
    return built.split("-")[0]


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise Refused(f"this app needs {PACKAGE} ({error}): pip install -r requirements.txt") from error
    return openvino


class Engine:
    """One synchronous request. shape: of its input, `(1, 3, H, W)`."""

    def __init__(self, bundle: Path, manifest: dict[str, Any], threads: int | None) -> None:
        core = _openvino().Core()
        config = dict(manifest["runtime"]["options"]["config"])
        wanted = CAPABILITY[config["INFERENCE_PRECISION_HINT"]]
        capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if wanted not in capable:
            raise Refused(f"the engine computes in {wanted}, this CPU in {', '.join(capable)}; export it for this CPU")
        if threads:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        path = bundle / manifest["entry"]
        try:
            compiled = core.compile_model(str(path), "CPU", config)
        except RuntimeError as error:
            raise Refused(f"{PACKAGE} cannot load {path.name}: {str(error)[-300:]}") from error
        self._request, self._output = compiled.create_infer_request(), compiled.output(0)
        self.shape = tuple(compiled.input(0).shape)

    def run(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 `[1, 3, H, W]` → scores `[1, classes]`."""
        # By itself it copies the input in and the output out; the one copy here outlives the next run.
        found = self._request.infer([tensor], share_inputs=True, share_outputs=True)
        out: NDArray[np.float32] = found[self._output].copy()
        return out

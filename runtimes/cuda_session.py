"""An engine of TensorRT or TensorRT-RTX on the GPU, with torch's memory and stream.

Written from the API documentation; no machine that built this project had a GPU to run it on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgevit.errors import RuntimeRefusal

if TYPE_CHECKING:
    import numpy as np

    from edgevit.stages import Engine


def no_gpu() -> str | None:
    """None where torch sees a GPU, else why an engine cannot run."""
    import torch

    return None if torch.cuda.is_available() else "no GPU here: torch.cuda.is_available() is false"


class CudaSession:
    """One execution context, one stream, one pair of buffers; the whole call waits for the result."""

    def __init__(self, vendor: Any, engine: Engine) -> None:
        import torch

        path = engine.folder / engine.entry
        self.runtime = vendor.Runtime(vendor.Logger(vendor.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:  # built for another GPU, or by another version
            raise RuntimeRefusal(f"{vendor.__name__} {vendor.__version__} does not load {path.name}; export it here")
        self.context = self.engine.create_execution_context()
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.images, self.outputs = engine.inputs.name, self.engine.get_tensor_name(self.engine.num_io_tensors - 1)
        shape = tuple(self.engine.get_tensor_shape(self.outputs))
        self.result = torch.empty(shape, dtype=torch.float32, device="cuda")
        self.context.set_tensor_address(self.outputs, self.result.data_ptr())

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """One inference."""
        import torch

        with torch.cuda.stream(self.stream):
            on_gpu = torch.from_numpy(images).contiguous().cuda()
            self.context.set_tensor_address(self.images, on_gpu.data_ptr())
            done = self.context.execute_async_v3(self.stream.cuda_stream)
        self.stream.synchronize()
        if not done:
            raise RuntimeRefusal("the engine did not run: execute_async_v3 failed")
        out: np.ndarray[Any, Any] = self.result.cpu().numpy()
        return out

"""What other tools make of the float engine that edgevit builds: ONNX Runtime's static quantizer, NNCF, and no thought.

All get the same float program and the same calibration images as edgevit; only the settings named here differ from
their defaults.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.bundle import MANIFEST, Bundle, staged, write_json
from edgevit.hashes import sha256_file
from edgevit.stages import Engine

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from edgevit.stages import InputSpec

NNCF = {  # column → what differs from NNCF's defaults
    "NNCF default": {},
    "NNCF TRANSFORMER": {"transformer": True},
    "NNCF TRANSFORMER, no SmoothQuant": {"transformer": True, "smooth": False},
}
NO_NNCF = "nncf is not installed (pip install 'edgevit[benchmark]'): its columns are left out"


def has_nncf() -> bool:
    """NNCF can be imported."""
    return find_spec("nncf") is not None


def float_engine(module: nn.Module, inputs: InputSpec, target: str, folder: Path) -> Engine:
    """The model as traced, what both start from. Not checked against eager: export's `fp32` does that."""
    from edgevit.export.trace import trace
    from edgevit.runtimes import runtime

    return runtime(target).build(trace(module, inputs), folder, "fp32")


def ort_static(engine: Engine, folder: Path, images: Sequence[np.ndarray[Any, Any]]) -> Engine:
    """`quantize_static` as it comes: Q/DQ on every operator type it knows, one min-max scale per tensor."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.rest, None)
            return None if image is None else {engine.inputs.name: image}

    with quiet_root(), tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):  # it leaves files behind
        quantize_static(engine.folder.resolve() / engine.entry, folder.resolve() / engine.entry, Reader())
    return replace(engine, folder=folder, precision="int8")


def nncf(
    engine: Engine,
    folder: Path,
    images: Sequence[np.ndarray[Any, Any]],
    *,
    transformer: bool = False,
    smooth: bool = True,
) -> Engine:
    """`nncf.quantize` of an OpenVINO engine. transformer: its model type. smooth: its SmoothQuant."""
    import nncf
    import openvino

    settings: dict[str, Any] = {}
    if transformer:
        settings["model_type"] = nncf.ModelType.TRANSFORMER
    if not smooth:
        off = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
        settings["advanced_parameters"] = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=off)
    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(engine.folder / engine.entry)
    model = nncf.quantize(model, nncf.Dataset(list(images)), **settings)
    openvino.save_model(model, folder / engine.entry, compress_to_fp16=False)
    return replace(engine, folder=folder, precision="int8")


def min_max_everywhere(
    module: nn.Module, inputs: InputSpec, images: Sequence[np.ndarray[Any, Any]]
) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """8 bits for every weight and every value that the program computes, one min-max scale a tensor, run by PyTorch.

    Norms, softmax, gates and residual adds included, as on a unit that has integers only. Batch norms are folded first;
    biases, gains and offsets stay float. Weights are symmetric, values affine.
    """
    import torch
    from torch import fx

    from edgevit.export.rewrite import rewrite
    from edgevit.export.trace import trace
    from edgevit.quant.flow import is_layer, operator
    from edgevit.quant.ranges import affine, fake_quantize
    from edgevit.quant.scheme import MOVES, Affine, QuantScheme

    program = trace(module, inputs).program.module()
    rewrite(program, inputs, ["fold_batch_norm"])
    weights = {node.args[1] for node in program.graph.nodes if node.op == "call_function" and is_layer(node)}
    ends: dict[fx.Node, tuple[float, float]] = {}
    found: dict[fx.Node, Affine] = {}

    class Rounded(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in weights and n.op == "get_attr":
                largest = float(value.abs().max())
                return fake_quantize(value, affine(-largest, largest, QuantScheme(activations="int8")))
            computes = n.op == "placeholder" or (n.op == "call_function" and operator(n) not in MOVES)
            if not (computes and isinstance(value, torch.Tensor) and value.is_floating_point()):
                return value
            if found:
                return fake_quantize(value, found[n])
            low, high = ends.get(n, (0.0, 0.0))
            ends[n] = min(low, float(value.min())), max(high, float(value.max()))
            return value

    interpreter = Rounded(program)

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            result: np.ndarray[Any, Any] = interpreter.run(torch.from_numpy(images)).numpy()
        return result

    for image in images:
        run(image)
    found.update({node: affine(*both, QuantScheme()) for node, both in ends.items()})
    return run


@contextlib.contextmanager
def quiet_root() -> Iterator[None]:
    """Without the advice that ONNX Runtime's quantizer logs through the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def rebuilt(source: Bundle, out: Path, build: Callable[[Path], Engine]) -> Bundle:
    """The bundle `out`: `source` with the files that `build(folder)` makes, opened with the options of `source`.

    So a peer's engine is evaluated and measured by the same code as ours. Made once; an existing one is read.
    """
    if not out.exists():
        with staged(out, force=False) as folder:
            engine = build(folder)
            files = {name: sha256_file(folder / name) for name in engine.files}
            write_json(folder / MANIFEST, {**source.manifest, "entry": engine.entry, "files": files})
    return Bundle.load(out)


def nncf_bundle(source: Bundle, out: Path, module: nn.Module, images: Sequence[np.ndarray], **settings: bool) -> Bundle:
    """`source`, an OpenVINO bundle of `module`, with NNCF's engine in the place of its own."""

    def build(folder: Path) -> Engine:
        with tempfile.TemporaryDirectory() as scratch:
            return nncf(
                float_engine(module, source.engine.inputs, "openvino", Path(scratch)), folder, images, **settings
            )

    return rebuilt(source, out, build)

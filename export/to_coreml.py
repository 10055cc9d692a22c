"""Graph → `.mlpackage`, through coremltools' reading of exported programs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import RuntimeRefusal, missing_extra
from edgevit.export.coreml_half import Half
from edgevit.export.coreml_operators import rewritings
from edgevit.quiet import quiet
from edgevit.stages import Graph, Refusal

if TYPE_CHECKING:
    from torch.export import ExportedProgram

LOGGERS = ("coremltools", "torch.utils._pytree", "root")  # what speaks while coremltools is imported and works
GROUP = 16
"""Output channels that share a table of a palette."""
LEAST_WEIGHTS = 2048
MODEL, WEIGHTS = "com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights"


@contextlib.contextmanager
def _absent(*packages: str) -> Iterator[None]:
    """Imports of these fail meanwhile, unless they are loaded already."""
    hidden = [name for name in packages if name not in sys.modules]
    try:
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def import_coremltools() -> Any:
    """The package, without its remarks on this machine. Raises MissingExtra.

    It imports every framework that it might convert from, where one is installed: 8 s of CPU time, of which 1.5 remain.
    """
    try:
        with quiet(*LOGGERS), _absent("executorch", "sklearn", "torchao"):
            import coremltools
    except ModuleNotFoundError as error:
        raise missing_extra("coreml", error) from error
    return coremltools


def to_coreml(graph: Graph, path: Path, deployment: str, half: bool, fused: bool, entries: int = 0) -> None:
    """Write an ML Program (input as the graph says, output `logits`) for a deployment target (`iOS18`).

    half: float16, but for what stays float32 (`coreml_half`). fused: attention as one operator, where the deployment
    target has it. entries: size of the tables that weights are palettized to, 0 for none.
    Raises RuntimeRefusal with the operator that is not converted.
    """
    import numpy as np

    from edgevit.quant.quotients import quotients_of_sums

    ct = import_coremltools()
    program = graph.program.run_decompositions(rewritings(fused))
    precision = ct.precision.FLOAT32
    if half:
        precision = ct.transform.FP16ComputePrecision(op_selector=Half(quotients_of_sums(program.module())))
    with quiet(*LOGGERS), contextlib.redirect_stderr(io.StringIO()):  # progress bars
        try:
            model = ct.convert(
                program,
                convert_to="mlprogram",
                outputs=[ct.TensorType(name="logits", dtype=np.float32)],
                minimum_deployment_target=ct.target[deployment],
                compute_precision=precision,
                skip_model_load=True,
            )
        except (NotImplementedError, ValueError, TypeError, RuntimeError, AssertionError, KeyError) as error:
            text = " ".join(str(error).split())[-300:]
            traceback.clear_frames(error.__traceback__)  # its temporary folder goes now, while nobody hears it warn
            raise RuntimeRefusal(f"coremltools {ct.__version__} does not convert this program: {text}") from error
        if entries:
            model = _palettized(model, entries, deployment)
        model.save(str(path))
    normalize(path)


def unknown(program: ExportedProgram) -> list[Refusal]:
    """Nodes that coremltools has no conversion for, and that nothing turns into others first."""
    import torch
    from coremltools.converters.mil.frontend.torch.ops import _TORCH_OPS_REGISTRY
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    found, composite, rewritten = [], torch._C.DispatchKey.CompositeImplicitAutograd, rewritings(fused=True)
    for node in program.graph.nodes:
        target = node.target
        if node.op != "call_function" or target in rewritten:
            continue
        if isinstance(target, torch._ops.OpOverload) and target.has_kernel_for_dispatch_key(composite):
            continue
        name = target._schema.name if isinstance(target, torch._ops.OpOverload) else target.__name__
        if _TORCH_OPS_REGISTRY.get_func(sanitize_op_kind(name)) is None:
            reason = f"coremltools has no conversion of {name}; take it out of the model, or use another target"
            found.append(Refusal(node.name, reason))
    return found


def normalize(package: Path) -> None:
    """The same program, the same bytes: no date, maps in order, identifiers made from what they name."""
    from coremltools.proto import Model_pb2

    data, manifest = package / "Data", package / "Manifest.json"
    model = Model_pb2.Model()
    model.ParseFromString((data / MODEL).read_bytes())
    del model.description.metadata.userDefined["com.github.apple.coremltools.conversion_date"]
    (data / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    for path in package.iterdir():
        if path not in (data, manifest):  # notes for a debugger
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    names = {"model.mlmodel": MODEL, "weights": WEIGHTS}
    digest = hashlib.sha256((data / MODEL).read_bytes()).hexdigest()
    identifier = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{digest}/{name}")) for name in names}
    entries = {
        identifier[name]: {"author": "com.apple.CoreML", "description": name, "name": name, "path": path}
        for name, path in names.items()
        if (data / path).exists()
    }
    root = identifier["model.mlmodel"]
    text = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": root}
    manifest.write_text(json.dumps(text, indent=4) + "\n", encoding="utf-8")


def _palettized(model: Any, entries: int, deployment: str) -> Any:
    """Weights by tables: one for 16 output channels where the deployment target has that (iOS 18), else one a weight.

    Weights of fewer than 2048 numbers, and those whose channels 16 does not divide, stay as they are.
    """
    import coremltools.optimize as cto

    from edgevit.export.palettize import table_and_places

    grouped = {} if deployment in ("iOS16", "iOS17") else {"granularity": "per_grouped_channel", "group_size": GROUP}
    config = cto.coreml.OpPalettizerConfig(
        mode="custom",
        lut_function=lambda values: table_and_places(values, entries),
        weight_threshold=LEAST_WEIGHTS,
        **grouped,
    )
    return cto.coreml.palettize_weights(model, cto.coreml.OptimizationConfig(global_config=config))

"""Graph → ONNX file, through torch's own exporter."""

from __future__ import annotations

import ast
import contextlib
import io
from pathlib import Path
from typing import Any

from edgevit.errors import GraphError, missing_extra
from edgevit.export.gate import check_onnx
from edgevit.export.pack_int4 import pack_int4
from edgevit.places import Placer, restored
from edgevit.quiet import quiet
from edgevit.stages import Graph

OPSET = 20  # ONNX Runtime 1.31 builds an invalid QuantizeLinear from int8 activations at opset >= 21
OPSET_NEW_TYPES = 21  # the first with 16 bits, 4 bits and groups
SCOPES, CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"


def to_onnx(graph: Graph, path: Path) -> None:
    """Write the program as one ONNX file at `path` (input `images`, output `logits`), statically checked."""
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it; name it before torch fails)
    except ModuleNotFoundError as error:
        raise missing_extra("onnx", error) from error
    import torch

    from edgevit.export.onnx_operators import TRANSLATIONS

    silent = contextlib.redirect_stdout(io.StringIO())
    with restored(graph.program), quiet("onnxscript", "onnx_ir", "torch.onnx"), silent:
        written = torch.onnx.export(
            graph.program,
            (torch.zeros(graph.inputs.shape),),
            dynamo=True,
            opset_version=OPSET_NEW_TYPES if _has_new_types(graph) else OPSET,
            custom_translation_table=TRANSLATIONS,
            input_names=[graph.inputs.name],
            output_names=["logits"],
            verbose=False,
        )
    assert written is not None
    model = written.model_proto
    _name_by_place(model)
    pack_int4(model)
    if model.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF:
        raise GraphError(f"{path.name} would be larger than 2 GiB, which one ONNX file cannot hold")
    model.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]  # source lines and paths of the exporting machine
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.metadata_props[:], model.graph.metadata_props[:]
    onnx.save(model, path)
    check_onnx(path)


def _name_by_place(model: Any) -> None:
    """Node names begin with their place in the model: runtimes that time layers give it back (`edgevit.places`)."""
    placer = Placer()
    for node in model.graph.node:
        known = {entry.key: entry.value for entry in node.metadata_props}
        if SCOPES in known:  # paths from the outermost module to the operator itself
            paths, classes = (ast.literal_eval(known[key]) for key in (SCOPES, CLASSES))
            node.name = f"{placer.place(paths[-2] if len(paths) > 1 else '', classes)}/{node.name}"


def _has_new_types(graph: Graph) -> bool:
    """Whether some value is quantized to 16 bits, or a weight in groups."""
    import torch

    wide = (torch.uint16, torch.int16)
    nodes = list(graph.program.graph.nodes)
    is_wide = any(isinstance(a, torch.dtype) and a in wide for node in nodes for a in node.args)
    return is_wide or any("per_channel_group" in str(node.target) for node in nodes)

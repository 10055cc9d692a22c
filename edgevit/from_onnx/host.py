"""Nodes that depend on no image: shape arithmetic and constants, computed by onnx's own reference implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edgevit.errors import LoadError

if TYPE_CHECKING:
    import numpy as np
    import onnx

MOST_ELEMENTS = 1 << 27  # of one value: a small file can ask for any size


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators in a model."""
    return int(next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")))


def evaluate(node: onnx.NodeProto, opset: int, values: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Outputs of a node of ONNX's own domain on arrays. Raises ValueError with the reason."""
    import numpy as np

    check_size(node, opset, values)
    feeds = {name: value for name, value in zip(node.input, values, strict=True) if name and value is not None}
    try:
        results = _evaluator(node.SerializeToString(), opset).run(None, feeds)
    except MemoryError as error:
        raise ValueError("it needs more memory than there is") from error
    except (RuntimeError, TypeError, LookupError, NotImplementedError, ArithmeticError, AttributeError) as error:
        raise ValueError(str(error).strip().split("\n")[0][:160]) from error
    return [np.asarray(result) for result in results]


def check_size(node: onnx.NodeProto, opset: int, values: Sequence[np.ndarray | None]) -> None:
    """Raise LoadError where an output would be larger than MOST_ELEMENTS, before it is made."""
    import onnx
    from onnx import helper, numpy_helper

    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    pairs = [(name, value) for name, value in zip(node.input, values, strict=True) if name and value is not None]
    types = {
        name: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in pairs
    }
    data = {name: numpy_helper.from_array(value, name) for name, value in pairs if value.size <= 1024}
    try:
        outputs = onnx.shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=[helper.make_opsetid(node.domain, opset)]
        )
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise ValueError(str(error).strip().split("\n")[0][:160]) from error
    for output in outputs.values():
        elements = math.prod(d.dim_value for d in output.tensor_type.shape.dim)
        if elements > MOST_ELEMENTS:
            raise LoadError(f"node {node.name or node.output[0]} ({node.op_type}) would make {elements:,} numbers")


@lru_cache(maxsize=4096)
def _evaluator(node: bytes, opset: int) -> Any:
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    proto = onnx.NodeProto.FromString(node)
    names = list(dict.fromkeys(name for name in proto.input if name))
    inputs = [onnx.ValueInfoProto(name=name) for name in names]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = helper.make_graph([proto], "node", inputs, outputs)
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid(proto.domain, opset)]))

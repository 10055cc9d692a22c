"""Every float of the graph becomes float32, which a program is checked in; a target narrows it again (`--fp16`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.from_onnx.editing import attribute
from edgevit.from_onnx.read import graphs

if TYPE_CHECKING:
    import onnx

    from edgevit.from_onnx.read import Foreign


def one_float_type(foreign: Foreign) -> int:
    """Conv(x: float16, W: float16), Cast(to=double)  becomes  Conv(x: float32, W: float32), Cast(to=float32)."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    others = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    changed = 0

    def widen(tensor: onnx.TensorProto) -> int:
        if tensor.data_type not in others:
            return 0
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
        return 1

    for graph, _ in graphs(foreign.model.graph):
        changed += sum(widen(t) for t in graph.initializer)
        for node in graph.node:
            for held in node.attribute:
                if held.HasField("t"):
                    changed += widen(held.t)
                if held.name in ("to", "dtype") and held.i in others and attribute(node, held.name) is not None:
                    held.i = TensorProto.FLOAT
                    changed += 1
        for value in [*graph.input, *graph.output]:
            if value.type.tensor_type.elem_type in others:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
                changed += 1
        del graph.value_info[:]  # inferred again where it is needed
    for name, value in foreign.weights.items():
        if value.dtype in (np.float16, np.float64):
            foreign.weights[name] = value.astype(np.float32)
    return changed


def computes_in_half(foreign: Foreign) -> bool:
    """Whether a weight or a Cast of the file is of 16 bits: then it rounds more than the imported module."""
    import numpy as np
    from onnx import TensorProto

    half = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    if any(value.dtype == np.float16 for value in foreign.weights.values()):
        return True
    return any(
        any(t.data_type in half for t in graph.initializer)
        or any(attribute(node, "to") in half for node in graph.node if node.op_type == "Cast")
        for graph, _ in graphs(foreign.model.graph)
    )

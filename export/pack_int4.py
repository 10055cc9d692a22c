"""Weights in groups, in a written ONNX model: from one byte a value to half a byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.errors import GraphError

if TYPE_CHECKING:
    import onnx


def pack_int4(model: onnx.ModelProto) -> None:
    """Store weights in groups as int4, laid out as they are multiplied.

    DequantizeLinear([out, in], axis 1) → Transpose → MatMul, or → Gemm with transB, becomes
    DequantizeLinear([in, out], axis 0) → MatMul or Gemm, which ONNX Runtime runs as one MatMulNBits.
    """
    import ml_dtypes
    import numpy as np
    from onnx import numpy_helper

    nodes = {n.output[0]: n for n in model.graph.node if any(a.name == "block_size" for a in n.attribute)}
    values = {name for node in nodes.values() for name in node.input[:1]}
    stored = {name for node in nodes.values() for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in stored:
            turned = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
            if tensor.name in values:
                turned = turned.astype(ml_dtypes.int4)
            tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
    for node in nodes.values():
        next(a for a in node.attribute if a.name == "axis").i = 0
    _read_turned(model.graph, set(nodes))
    for value in [v for v in model.graph.value_info if v.name in stored | set(nodes)]:
        model.graph.value_info.remove(value)


def _read_turned(graph: onnx.GraphProto, turned: set[str]) -> None:
    """Drop the transposition in front of each reader."""
    same = {}  # output of a dropped Transpose → the value that is laid out so already
    for node in [n for n in graph.node if not turned.isdisjoint(n.input)]:
        transposed = next((a for a in node.attribute if a.name == "transB"), None)
        if node.op_type == "Transpose":
            same[node.output[0]] = node.input[0]
            graph.node.remove(node)
        elif node.op_type == "Gemm" and node.input[1] in turned and transposed and transposed.i:
            transposed.i = 0
        else:
            raise GraphError(f"{node.op_type} {node.name} reads a weight in groups; only a Linear can")
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)

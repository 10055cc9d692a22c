"""What depends on no image is computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.errors import LoadError
from edgevit.from_onnx.editing import Editor
from edgevit.from_onnx.host import evaluate, opset_of
from edgevit.from_onnx.read import LIFTED_BYTES, label

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from edgevit.from_onnx.read import Foreign

RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
GROWING = ("Expand", "Tile", "ConstantOfShape", "Range", "Pad", "Resize", "OneHot", "EyeLike")


def fold_constants(foreign: Foreign) -> int:
    """Transpose(W)  becomes  W'; how many nodes. What would make a large tensor of a small one stays."""
    editor, opset = Editor(foreign), opset_of(foreign.model)
    outputs = {o.name for o in foreign.model.graph.output}
    rest, count = [], 0
    for node in list(foreign.model.graph.node):
        names = [o for o in node.output if o]
        try:
            values = None if outputs.intersection(names) else _values(editor, node, opset)
        except ValueError as error:
            raise LoadError(f"{foreign.name}: node {label(node)} ({node.op_type}): {error}") from error
        if values is None:
            rest.append(node)
            continue
        count += 1
        for name, value in zip(names, values, strict=True):
            del editor.made[name]
            editor.add(name, value)
    copies = [type(node).FromString(node.SerializeToString()) for node in rest]
    del foreign.model.graph.node[:]
    foreign.model.graph.node.extend(copies)
    return count


def _values(editor: Editor, node: onnx.NodeProto, opset: int) -> list[np.ndarray] | None:
    """The outputs of a node, where every input is a constant."""
    if node.domain not in ("", "ai.onnx") or node.op_type in RANDOM or any(a.HasField("g") for a in node.attribute):
        return None
    inputs = [editor.value(name) if name else None for name in node.input]
    if any(value is None for name, value in zip(node.input, inputs, strict=True) if name):
        return None
    values = evaluate(node, opset, inputs)
    most = max([LIFTED_BYTES, *(value.nbytes for value in inputs if value is not None)])
    if node.op_type in GROWING and any(value.nbytes > most for value in values):
        return None
    return values

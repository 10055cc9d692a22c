"""Softmax before opset 13 flattened its input to two dimensions, and onnx's converter writes that out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.from_onnx.editing import Editor, attribute, shapes

if TYPE_CHECKING:
    from edgevit.from_onnx.read import Foreign

FLAT = ("Reshape", ("Softmax", ("Flatten:flatten", "x")))


def unflatten_softmax(foreign: Foreign) -> int:
    """Reshape(Softmax(Flatten(x, axis=3))), x [B, H, N, N]  becomes  Softmax(x, axis=-1); how many."""
    editor, known, count = Editor(foreign), shapes(foreign), 0
    for node in foreign.model.graph.node:
        found = editor.match(node.output[0], FLAT) if node.op_type == "Reshape" else None
        if not found:
            continue
        shape = known.get(found["x"])
        axis = attribute(found["@flatten"], "axis", 1)
        if shape and axis in (-1, len(shape) - 1) and shape == known.get(node.output[0]):
            editor.replace(node, "Softmax", [found["x"]], axis=-1)
            count += 1
    return count

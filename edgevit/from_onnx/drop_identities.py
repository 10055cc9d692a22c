"""Nodes that change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.from_onnx.editing import Editor, attribute, rename

if TYPE_CHECKING:
    import onnx

    from edgevit.from_onnx.read import Foreign

UNITS = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0, "Pow": 1.0}


def drop_identities(foreign: Foreign) -> int:
    """Identity(x), Dropout(x), Cast(x) to its own type, Concat of one, x * 1  become  x; how many."""
    import onnx

    editor = Editor(foreign)
    inferred = onnx.shape_inference.infer_shapes(foreign.model).graph
    types = {v.name: v.type.tensor_type for v in [*inferred.value_info, *inferred.input]}
    outputs = {o.name for o in foreign.model.graph.output}
    names = {}
    for node in foreign.model.graph.node:
        if node.output[0] in outputs or any(node.output[1:]):
            continue
        if _is_identity(editor, node, types):
            names[node.output[0]] = node.input[0]
    rename(foreign, names)
    return len(names)


def _is_identity(editor: Editor, node: onnx.NodeProto, types: dict[str, onnx.TypeProto.Tensor]) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in ("Identity", "Dropout"):  # `training_mode` is refused with the other random operators
        return len(node.input) < 3 or not node.input[2]
    if node.op_type == "Concat":
        return len(node.input) == 1
    if node.op_type == "Cast":
        kind = types.get(node.input[0])
        return kind is not None and kind.elem_type == attribute(node, "to")
    if node.op_type in UNITS:
        here, there = types.get(node.input[0]), types.get(node.output[0])
        value = editor.scalar(node.input[1])
        same = here is not None and there is not None and here.shape == there.shape and here.HasField("shape")
        return value == UNITS[node.op_type] and same
    return False

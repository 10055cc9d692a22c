"""Attention masks that hide nothing, as exporters of Hugging Face models write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.from_onnx.editing import Editor, rename, shapes

if TYPE_CHECKING:
    import onnx

    from edgevit.from_onnx.read import Foreign

MASKED = tuple(("Where", held, 0.0, "hidden") for held in (("Expand", "open"), "open"))
SAFE = ("Where", ("IsNaN", "y"), 0.0, "y")
MASK = 3  # which input of ONNX's Attention (opset 23) it is


def drop_open_masks(foreign: Foreign) -> int:
    """Softmax(x + mask), 0 where it is NaN  becomes  Softmax(x), for a mask of 0 or Where(True, 0, -inf).

    Attention loses a mask of 0 or True. How many nodes and inputs go.
    """
    editor, known = Editor(foreign), shapes(foreign)
    names: dict[str, str] = {}
    inputs = 0
    given = {o.name for o in foreign.model.graph.output}
    for node in foreign.model.graph.node:
        output = node.output[0]
        if node.op_type == "Attention" and len(node.input) > MASK and _hides_nothing(editor, node.input[MASK]):
            _clear(node)
            inputs += 1
        if output in given:
            continue
        if node.op_type == "Add":
            for x, mask in (node.input, reversed(node.input)):
                if known.get(output, 0) == known.get(x, 1) and _hides_nothing(editor, mask):
                    names[output] = x
        safe = editor.match(output, SAFE) if node.op_type == "Where" else None
        softmax = editor.made.get(safe["y"]) if safe else None
        if safe and softmax is not None and softmax.op_type == "Softmax" and softmax.input[0] in names:
            names[output] = safe["y"]  # of finite numbers it is finite
    rename(foreign, names)
    return len(names) + inputs


def _hides_nothing(editor: Editor, mask: str) -> bool:
    """Whether a mask is 0 or True throughout, whatever the image."""
    value = editor.value(mask)
    if value is not None:
        return bool(value.all()) if value.dtype == bool else not value.any()
    found = next((found for pattern in MASKED if (found := editor.match(mask, pattern))), None)
    held = editor.value(found["open"]) if found else None
    return held is not None and bool(held.all())


def _clear(node: onnx.NodeProto) -> None:
    """Leave an Attention's mask out."""
    node.input[MASK] = ""
    while not node.input[-1]:
        del node.input[-1]

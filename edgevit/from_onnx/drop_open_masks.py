"""Attention masks that hide nothing, as exporters of Hugging Face models write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.from_onnx.editing import Editor, rename, shapes

if TYPE_CHECKING:
    from edgevit.from_onnx.read import Foreign

MASKED = tuple(("Add", "x", ("Where", held, 0.0, "hidden")) for held in (("Expand", "open"), "open"))
SAFE = ("Where", ("IsNaN", "y"), 0.0, "y")


def drop_open_masks(foreign: Foreign) -> int:
    """Softmax(x + Where(True, 0, -inf)), 0 where it is NaN  becomes  Softmax(x); how many nodes go."""
    editor, known = Editor(foreign), shapes(foreign)
    names: dict[str, str] = {}
    given = {o.name for o in foreign.model.graph.output}
    for node in foreign.model.graph.node:
        output = node.output[0]
        if output in given:
            continue
        found = next((f for p in MASKED if (f := editor.match(output, p))), None) if node.op_type == "Add" else None
        if found:
            mask = editor.value(found["open"])
            if mask is not None and mask.all() and known.get(output, 0) == known.get(found["x"], 1):
                names[output] = found["x"]
        safe = editor.match(output, SAFE) if node.op_type == "Where" else None
        softmax = editor.made.get(safe["y"]) if safe else None
        if safe and softmax is not None and softmax.op_type == "Softmax" and softmax.input[0] in names:
            names[output] = safe["y"]  # of finite numbers it is finite
    rename(foreign, names)
    return len(names)

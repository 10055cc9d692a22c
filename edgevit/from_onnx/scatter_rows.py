"""A scatter whose index is the same for all channels moves whole tokens: one matrix product an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.from_onnx.editing import OWN, Editor, attribute, shapes

if TYPE_CHECKING:
    from edgevit.from_onnx.read import Foreign

ROWS = 1  # the tokens of [B, N, C]


def scatter_rows(foreign: Foreign) -> int:
    """ScatterElements(x, Expand(i [B, r, 1]), y, axis=1)  becomes  edgevit.ScatterRows(x, i, y); how many."""
    editor, known, count = Editor(foreign), shapes(foreign), 0
    for node in foreign.model.graph.node:
        if node.op_type != "ScatterElements" or node.domain not in ("", "ai.onnx"):
            continue
        found = editor.match(node.input[1], ("Expand", "index"))
        index = found["index"] if found else node.input[1]
        shape, narrow = known.get(index, ()), known.get(node.input[0], ())[-1:] == (1,)
        if len(shape) != 3 or shape[2] != 1 or not (found or narrow):
            continue
        if attribute(node, "axis", 0) not in (ROWS, ROWS - 3):
            continue
        inputs = [node.input[0], index, node.input[2]]
        editor.replace(node, "ScatterRows", inputs, domain=OWN, reduction=attribute(node, "reduction", "none"))
        count += 1
    return count

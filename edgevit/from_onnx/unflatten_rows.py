"""Rows `[B * N, C]` become tokens `[B, N, C]` again: optimizers and older exporters flatten them for a Gemm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgevit.from_onnx.editing import OWN, Editor, put_in_front, rename, shapes

if TYPE_CHECKING:
    import onnx

    from edgevit.from_onnx.read import Foreign, Shapes

ROW = 1  # the last axis of rows, where what works on each row alone must work
ALONE = ("Gelu", "Relu", "Sigmoid", "Tanh", "Erf", "HardSigmoid", "HardSwish", "Mish", "Softplus", "Neg")
TOGETHER = ("Add", "Sub", "Mul", "Div")


class Tokens(NamedTuple):
    """A value `[B, N, C]`, made or to be made, that a value `[B * N, C]` holds the rows of; its shape without C."""

    name: str
    lead: tuple[int | None, ...]


def unflatten_rows(foreign: Foreign) -> int:
    """Reshape(Linear(Reshape(x [1, N, C], [N, C])), [1, N, D])  becomes  Linear(x), and Gelu and sums; how many."""
    editor, known = Editor(foreign), shapes(foreign)
    tokens = _rows(editor, known)
    useful = _useful(foreign, tokens, known)
    front: dict[str, list[onnx.NodeProto]] = {}
    for node in foreign.model.graph.node:
        flat = node.output[0]
        if flat not in useful or node.input[0] == tokens[flat].name:
            continue
        width = known[flat][ROW]
        twin = _twin(editor, node, tokens, width)
        known[twin.output[0]] = (*tokens[flat].lead, width)
        front[flat] = [twin]
        target = editor.add(flat + "/rows", np.array([-1, width], np.int64))
        editor.replace(node, "Reshape", [twin.output[0], target])
    if not front:
        return 0
    _read_tokens(editor, tokens, front, known)
    put_in_front(foreign, front)
    return len(front)


def _rows(editor: Editor, known: Shapes) -> dict[str, Tokens]:
    """Every value of rows, by what it holds the rows of; those that no node makes yet under a new name."""
    found: dict[str, Tokens] = {}
    for node in editor.graph.node:
        shape = known.get(node.output[0], ()) if node.output else ()
        if len(shape) != 2 or shape[ROW] is None:
            continue
        if node.op_type == "Reshape":
            lead = _split(known.get(node.input[0], ()), shape[ROW])
            if lead:
                whole = len(known[node.input[0]]) == len(lead) + 1
                found[node.output[0]] = Tokens(node.input[0] if whole else node.output[0] + "/tokens", lead)
        elif (lead := _lead(editor, node, found)) is not None:
            found[node.output[0]] = Tokens(node.output[0] + "/tokens", lead)
    return found


def _split(shape: tuple[int | None, ...], width: int | None) -> tuple[int | None, ...] | None:
    """The sizes in front of those that are a row of a width, where they are two or more and one at most unknown."""
    for place in range(len(shape) - 1, 1, -1):
        row = shape[place:]
        if None not in row and math.prod(s or 0 for s in row) == width:
            return shape[:place] if shape[:place].count(None) < 2 else None
    return None


def _lead(editor: Editor, node: onnx.NodeProto, found: dict[str, Tokens]) -> tuple[int | None, ...] | None:
    """The shape without C of what a node makes of rows, if it works on each row alone."""
    leads = [found[name].lead for name in node.input if name in found]
    if not leads or any(lead != leads[0] for lead in leads[1:]) or any(node.output[1:]):
        return None
    if node.domain == OWN:
        return leads[0] if node.op_type == "Linear" and node.input[0] in found else None
    if node.op_type in ALONE:
        return leads[0]
    if node.op_type == "LayerNormalization":
        return leads[0] if node.input[0] in found and _over_rows(node) else None
    values = [editor.value(name) for name in node.input if name not in found]
    fits = all(value is not None and value.ndim <= 1 for value in values)
    return leads[0] if node.op_type in TOGETHER and fits else None


def _over_rows(node: onnx.NodeProto) -> bool:
    return all(attribute.i in (-1, ROW) for attribute in node.attribute if attribute.name == "axis")


def _useful(foreign: Foreign, tokens: dict[str, Tokens], known: Shapes) -> set[str]:
    """The values of rows that become tokens again further on; the others are a head's, say."""
    useful: set[str] = set()
    for node in reversed(foreign.model.graph.node):
        output = node.output[0] if node.output else ""
        back = node.op_type == "Reshape" and len(known.get(output, ())) > 2
        if back or output in useful:
            useful.update(name for name in node.input if name in tokens)
    return useful


def _twin(editor: Editor, node: onnx.NodeProto, tokens: dict[str, Tokens], width: int | None) -> onnx.NodeProto:
    """The node on tokens."""
    twin: Any = type(node).FromString(node.SerializeToString())
    made = tokens[node.output[0]]
    twin.output[0] = made.name
    if node.op_type == "Reshape":
        sizes = [-1 if size is None else size for size in (*made.lead, width)]
        twin.input[1] = editor.add(made.name + "/shape", np.array(sizes, np.int64))
        return twin
    for i, name in enumerate(twin.input):
        if name in tokens:
            twin.input[i] = tokens[name].name
    for attribute in twin.attribute:
        if attribute.name == "axis":
            attribute.i = -1
    return twin


def _read_tokens(
    editor: Editor, tokens: dict[str, Tokens], front: dict[str, list[onnx.NodeProto]], known: Shapes
) -> None:
    """Let every Reshape of rows read the tokens themselves; where it gives their shape back, it goes."""
    names: dict[str, str] = {}
    given = {output.name for output in editor.graph.output}
    for node in editor.graph.node:
        if node.op_type != "Reshape" or node.input[0] not in front or node.output[0] in front:
            continue
        whole, output = tokens[node.input[0]].name, node.output[0]
        target = editor.value(node.input[1])
        if output not in given and _same(known.get(output, ()), known[whole]):
            names[output] = whole
        elif target is not None and 0 not in target:  # a 0 copies a size of what is read
            node.input[0] = whole
    for nodes in front.values():
        for node in nodes:
            for i, name in enumerate(node.input):
                node.input[i] = names.get(name, name)
    rename(editor.foreign, names)


def _same(one: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    """Whether two shapes of as many numbers are the same; one unknown size follows from the others."""
    return one == other and one.count(None) < 2

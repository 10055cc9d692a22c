"""A boolean mask over tokens becomes a TopK of a fixed count: engines need static shapes.

A mask is a comparison of scores with a threshold. Its margin is how far a score is above; where the mask holds as often
as the count says, the largest margins are exactly what it holds for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from edgevit.errors import LoadError
from edgevit.from_onnx.editing import OWN, Editor, attribute, put_in_front
from edgevit.from_onnx.read import label, use_domain

if TYPE_CHECKING:
    import onnx

    from edgevit.from_onnx.read import Foreign

FAR = 1e30  # a margin above and below all others
COMPARISONS = {"Greater": (0, 1), "GreaterOrEqual": (0, 1), "Less": (1, 0), "LessOrEqual": (1, 0)}
JOINS = {"And": "Min", "Or": "Max"}
MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Expand", "Identity")
PASSED = ("Cast", "Identity")  # a mask as another type


class Point(NamedTuple):
    """A node that selects by a mask. mask: the value it comes from, negated or not; turned: negated."""

    node: onnx.NodeProto
    mask: str
    turned: bool


def static_counts(foreign: Foreign) -> int:
    """NonZero(score > t)  becomes  edgevit.NonZero(score - t, count); Compress(x, mask) a Gather; how many.

    Raises LoadError: a mask of another form, or nothing says how many tokens it should keep.
    """
    editor = Editor(foreign)
    points = found(editor)
    if not points:
        if foreign.keep and foreign.keep.asked is not None:
            raise LoadError(f"--keep: {foreign.name} selects nothing by a mask; its token counts are fixed already")
        return 0
    margins = [Margins(editor, point) for point in points]
    made = [m.of(_condition(p.node)) for m, p in zip(margins, points, strict=True)]
    assert foreign.keep is not None  # every file is loaded with one
    counts = foreign.keep.counts(foreign, points)
    front = {
        point.node.output[0]: [*margin.nodes, *_rewrite(editor, point, name, count)]
        for point, margin, name, count in zip(points, margins, made, counts, strict=True)
    }
    put_in_front(foreign, front)
    use_domain(foreign.model, OWN)
    return len(points)


def found(editor: Editor) -> list[Point]:
    """The nodes that select by a mask, in order."""
    nodes = [n for n in editor.graph.node if n.op_type in ("NonZero", "Compress") and n.domain in ("", "ai.onnx")]
    return [Point(node, *_root(editor, _condition(node))) for node in nodes]


def _condition(node: onnx.NodeProto) -> str:
    return str(node.input[0 if node.op_type == "NonZero" else 1])


def _root(editor: Editor, name: str) -> tuple[str, bool]:
    """The mask behind casts, moves and negations, and whether it is negated."""
    turned = False
    node = editor.made.get(name)
    while node is not None and node.op_type in (*PASSED, *MOVES, "Not"):
        turned ^= node.op_type == "Not"
        name = node.input[0]
        node = editor.made.get(name)
    return name, turned


class Margins:
    """Writes the nodes that compute a mask's margin, in front of the node that selects by it."""

    def __init__(self, editor: Editor, point: Point) -> None:
        self.editor, self.point = editor, point
        self.nodes: list[onnx.NodeProto] = []

    def of(self, mask: str) -> str:
        """The margin of a mask, as a new value. Raises LoadError where it is none of a comparison."""
        node, constant = self.editor.made.get(mask), self.editor.value(mask)
        if constant is not None:
            return self.editor.add(mask + "_margin", np.where(constant != 0, FAR, -FAR).astype(np.float32))
        if node is None or node.domain not in ("", "ai.onnx"):
            self._stop(node)
        op = node.op_type
        if op in COMPARISONS:
            above, below = COMPARISONS[op]
            return self._node("Sub", [node.input[above], node.input[below]])
        if op == "Not":
            return self._node("Neg", [self.of(node.input[0])])
        if op in JOINS:
            return self._node(JOINS[op], [self.of(name) for name in node.input])
        if op == "Concat":
            return self._like(node, [self.of(name) for name in node.input])
        if op in PASSED:
            return self.of(node.input[0])
        if op in MOVES:
            return self._like(node, [self.of(node.input[0]), *node.input[1:]])
        return self._stop(node)

    def _stop(self, node: onnx.NodeProto | None) -> NoReturn:
        where = f"node {label(node)} ({node.op_type})" if node is not None else "an input"
        raise LoadError(
            f"{self.editor.foreign.name}: node {label(self.point.node)} ({self.point.node.op_type}): its mask comes "
            f"from {where}; a comparison of scores with a threshold was expected, which a TopK can stand for"
        )

    def _node(self, op: str, inputs: list[str]) -> str:
        from onnx import helper

        return self._add(helper.make_node(op, inputs, [""]))

    def _like(self, node: onnx.NodeProto, inputs: list[str]) -> str:
        copy = type(node).FromString(node.SerializeToString())
        del copy.input[:]
        copy.input.extend(inputs)
        return self._add(copy)

    def _add(self, node: Any) -> str:
        name = f"{label(self.point.node)}/margin_{len(self.nodes)}"
        node.name = node.output[0] = name
        self.nodes.append(node)
        return name


def _rewrite(editor: Editor, point: Point, margin: str, count: int) -> list[onnx.NodeProto]:
    """Let the node select by a margin; what else must stand in front of it."""
    from onnx import helper

    node = point.node
    if node.op_type == "NonZero":
        editor.replace(node, "NonZero", [margin], domain=OWN, count=count)
        return []
    axis = attribute(node, "axis")
    if axis is None:
        raise LoadError(
            f"{editor.foreign.name}: node {label(node)} (Compress): it flattens its input; an axis was expected"
        )
    places, first = label(node) + "/places", label(node) + "/first"
    axes = editor.add(label(node) + "/axes", np.array([0], np.int64))
    editor.replace(node, "Gather", [node.input[0], first], axis=axis)
    return [
        helper.make_node("NonZero", [margin], [places], places, domain=OWN, count=count),
        helper.make_node("Squeeze", [places, axes], [first], first),
    ]

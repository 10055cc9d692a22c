"""The places that samples fall on, each once: a mask over the places, which `static_counts` makes a TopK of.

Adaptive Token Sampling (arXiv:2111.15667) draws tokens by the inverse of a cumulative score and keeps the unique ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from edgevit.errors import LoadError
from edgevit.from_onnx.editing import Editor, attribute, put_in_front
from edgevit.from_onnx.read import label
from edgevit.from_onnx.static_counts import COMPARISONS, MOVES

if TYPE_CHECKING:
    import onnx

    from edgevit.from_onnx.read import Foreign

CHOICES = {"ArgMin": 0, "ArgMax": 0, "TopK": 1}  # which output holds places along an axis
BOUNDS = {"Clip": (1, 2), "Max": (1, None), "Min": (None, 1)}  # where the least and the largest value stand
TRUTHS = (*COMPARISONS, "Equal", "And", "Or", "Not")
COUNTS = 3  # the output of Unique that is imported besides its values
NOT_IMPORTED = {1: "the first of each", 2: "the inverse"}
FLOAT, INT64 = 1, 7  # onnx.TensorProto
DRAWN = 0.5  # draws less a part of one half at most: above it exactly where a place was drawn


class Span(NamedTuple):
    """Whole numbers from `low` up to and without the value `high`, `[1]`."""

    low: int
    high: str


def unique_places(foreign: Foreign) -> int:
    """Unique(i)  becomes  NonZero(draws > 0.5), draws: how often each place occurs in i; how many.

    Of places drawn equally often the first stays, where a fixed count is smaller. Raises LoadError: values that are no
    places along an axis, or an output that places do not have.
    """
    editor = Editor(foreign)
    nodes = [n for n in editor.graph.node if n.op_type == "Unique" and n.domain in ("", "ai.onnx")]
    front = {}
    for node in nodes:
        places = Places(editor, node)
        places.write()
        front[node.output[0]] = places.nodes
    put_in_front(foreign, front)
    return len(nodes)


class Places:
    """Writes what stands in front of a Unique, and makes it what gives the values."""

    def __init__(self, editor: Editor, node: onnx.NodeProto) -> None:
        self.editor, self.unique = editor, node
        self.name = label(node)
        self.nodes: list[onnx.NodeProto] = []

    def write(self) -> None:
        """Draws, their mask, the places where it holds."""
        node = self.unique
        self._check()
        low, high = self.span(node.input[0])
        least, first = self._constant(np.int64(low)), self._constant(np.array([0], np.int64))
        values = self._node("Range", [least, self._node("Squeeze", [high, first]), self._constant(np.int64(1))])
        column = self._node("Reshape", [node.input[0], self._constant(np.array([-1, 1], np.int64))])
        hits = self._node("Equal", [self._node("Cast", [column], to=INT64), values])
        draws = self._node("ReduceSum", [self._node("Cast", [hits], to=FLOAT), first], keepdims=0)
        place, count = (self._node("Cast", [self._node("Sub", [one, least])], to=FLOAT) for one in (values, high))
        behind = self._node("Div", [place, self._node("Add", [count, count])])  # below one half
        score = self._node("Sub", [draws, behind])
        mask = self._node("Greater", [score, self._constant(np.float32(DRAWN))])
        kept = self._node("Squeeze", [self._node("NonZero", [mask], name=self.name), first])
        chosen = self._node("Gather", [values, kept])
        if self.editor.read(node, COUNTS):
            often = self._node("Gather", [draws, kept])
            self.nodes.append(_named("Cast", [often], node.output[COUNTS], to=INT64))
        self.editor.replace(node, "CastLike", [chosen, node.input[0]])
        node.name += "/values"  # its own is that of the mask's node
        del node.output[1:]

    def span(self, name: str) -> Span:
        """Where the values of an integer tensor lie, by how it is made. Raises LoadError."""
        constant = self.editor.value(name)
        if constant is not None and constant.dtype.kind in "iu" and constant.size:
            return Span(int(constant.min()), self._constant(np.array([constant.max() + 1], np.int64)))
        node = self.editor.made.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            self._stop(node)
        op = node.op_type
        if op in CHOICES and name == node.output[CHOICES[op]]:
            return Span(0, self._size(node.input[0], int(attribute(node, "axis", -1 if op == "TopK" else 0))))
        if op == "ReduceSum" and self._counts_truths(node):
            axis = self.editor.value(node.input[1])
            assert axis is not None
            most = self._size(node.input[0], int(axis.reshape(-1)[0]))
            return Span(0, self._node("Add", [most, self._constant(np.int64(1))]))
        if op in ("Cast", *MOVES):
            return self.span(node.input[0])
        if op == "Concat":
            spans = [self.span(one) for one in node.input]
            return Span(min(s.low for s in spans), self._node("Max", [s.high for s in spans]))
        if op in ("Add", "Sub"):
            return self._shifted(node)
        if op in BOUNDS:
            return self._bounded(node)
        return self._stop(node)

    def _shifted(self, node: onnx.NodeProto) -> Span:
        """Behind a constant that is added or taken away."""
        value, by = node.input
        if node.op_type == "Add" and self.editor.scalar(value) is not None:
            value, by = by, value
        amount = self.editor.scalar(by)
        if amount is None:
            self._stop(node)
        amount = int(amount) if node.op_type == "Add" else -int(amount)
        low, high = self.span(value)
        return Span(low + amount, self._node("Add", [high, self._constant(np.int64(amount))]))

    def _bounded(self, node: onnx.NodeProto) -> Span:
        """Behind constant bounds."""
        inputs = list(node.input)
        if node.op_type != "Clip" and self.editor.scalar(inputs[0]) is not None:
            inputs.reverse()
        low, high = self.span(inputs[0])
        for bound, place in zip(("low", "high"), BOUNDS[node.op_type], strict=True):
            if place is None or place >= len(inputs) or not inputs[place]:
                continue
            value = self.editor.scalar(inputs[place])
            if value is None:
                self._stop(node)
            if bound == "low":
                low = max(low, int(value))
            else:
                high = self._node("Min", [high, self._constant(np.int64(value + 1))])
        return Span(low, high)

    def _counts_truths(self, node: onnx.NodeProto) -> bool:
        """A sum of comparisons along one axis: how many points lie below, as a search in a sorted row is written."""
        axes = self.editor.value(node.input[1]) if len(node.input) > 1 else None
        cast = self.editor.made.get(node.input[0])
        truth = self.editor.made.get(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
        return axes is not None and axes.size == 1 and truth is not None and truth.op_type in TRUTHS

    def _size(self, name: str, axis: int) -> str:
        """How long a value is along an axis, `[1]`."""
        end: dict[str, Any] = {} if axis == -1 else {"end": axis + 1}
        return self._node("Shape", [name], start=axis, **end)

    def _check(self) -> None:
        read = [place for place in NOT_IMPORTED if self.editor.read(self.unique, place)]
        why = None
        if read:
            why = f"its output {read[0]} ({NOT_IMPORTED[read[0]]}) is read; its values and counts are imported"
        elif not attribute(self.unique, "sorted", 1):
            why = "its values are not sorted; export it with sorted=True"
        elif attribute(self.unique, "axis") is not None:
            why = "it compares whole slices along an axis; single places of tokens were expected"
        if why:
            raise LoadError(f"{self.editor.foreign.name}: node {self.name} (Unique): {why}")

    def _stop(self, node: onnx.NodeProto | None) -> NoReturn:
        where = f"node {label(node)} ({node.op_type})" if node is not None else "an input"
        raise LoadError(
            f"{self.editor.foreign.name}: node {self.name} (Unique): its values come from {where}; places that an "
            "ArgMin, ArgMax, TopK or a sum of comparisons gives, shifted by constants, were expected"
        )

    def _constant(self, value: Any) -> str:
        return self.editor.add(f"{self.name}/known", np.asarray(value))

    def _node(self, op: str, inputs: list[str], name: str = "", **attributes: Any) -> str:
        output = f"{self.name}/places_{len(self.nodes)}"
        self.nodes.append(_named(op, inputs, output, name=name or output, **attributes))
        return output


def _named(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node(op, inputs, [output], **attributes)

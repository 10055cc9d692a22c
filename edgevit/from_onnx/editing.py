"""What the passes share: the main graph indexed by name, and patterns of its nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgevit.from_onnx.read import LIFTED_BYTES, Foreign, Shapes, graphs, use_domain

if TYPE_CHECKING:
    import numpy as np
    import onnx

OWN = "edgevit"  # the domain of operators that passes write and the importer knows
COMMUTATIVE = ("Add", "Mul")
CLOSE = 1e-4  # constants of a formula, which some exporters round to float16

Pattern = Any
"""A string names a value, the same wherever it stands twice. A number is a constant of that value. A tuple is a node:
`("Div|Mul:name", *patterns of its first inputs)`; the node itself is found as `@name`."""


class Editor:
    """The main graph of a file. `made`: value → the node that makes it."""

    def __init__(self, foreign: Foreign) -> None:
        from onnx import numpy_helper

        self.foreign = foreign
        self.graph = foreign.model.graph
        self.made = {output: node for node in self.graph.node for output in node.output}
        self.small = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}

    def value(self, name: str) -> np.ndarray | None:
        """A constant, or None for what depends on the image."""
        found = self.small.get(name)
        return self.foreign.weights.get(name) if found is None else found

    def scalar(self, name: str) -> float | None:
        """A constant of one element, or None."""
        value = self.small.get(name)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def read(self, node: onnx.NodeProto, place: int) -> bool:
        """Whether a node of the main graph, or its output, reads the output at this place of a node."""
        name = node.output[place] if place < len(node.output) else ""
        given = {output.name for output in self.graph.output}
        return bool(name) and (name in given or any(name in reads(one) for one in self.graph.node))

    def add(self, name: str, value: np.ndarray) -> str:
        """A new constant; its name in the graph."""
        from onnx import helper, numpy_helper

        unique = name
        while unique in self.made or self.value(unique) is not None:
            unique += "_"
        if value.nbytes > LIFTED_BYTES:
            self.foreign.weights[unique] = value
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            self.graph.input.append(helper.make_tensor_value_info(unique, kind, value.shape))
        else:
            self.small[unique] = value
            self.graph.initializer.append(numpy_helper.from_array(value, unique))
        return unique

    def replace(self, node: onnx.NodeProto, op: str, inputs: list[str], domain: str = "", **attributes: Any) -> None:
        """Make a node another one, with the same name and outputs."""
        from onnx import helper

        new = helper.make_node(op, inputs, list(node.output), node.name, domain=domain, **attributes)
        node.CopyFrom(new)
        if domain:
            use_domain(self.foreign.model, domain)

    def match(self, name: str, pattern: Pattern) -> Mapping[str, Any] | None:
        """What the names of a pattern stand for, where the value `name` is made like it."""
        found: dict[str, Any] = {}
        return found if self._match(name, pattern, found) else None

    def _match(self, name: str, pattern: Pattern, found: dict[str, Any]) -> bool:
        if isinstance(pattern, str):
            return bool(found.setdefault(pattern, name) == name)
        if isinstance(pattern, float):
            value = self.scalar(name)
            return value is not None and abs(value - pattern) <= CLOSE * abs(pattern)
        kinds, *arguments = pattern
        operators, _, label = kinds.partition(":")
        node = self.made.get(name)
        if node is None or node.op_type not in operators.split("|") or node.domain not in ("", "ai.onnx"):
            return False
        if len(node.input) < len(arguments):
            return False
        orders = [arguments]
        if node.op_type in COMMUTATIVE:
            orders.append(arguments[::-1])
        for order in orders:
            trial = dict(found)
            if all(self._match(i, p, trial) for i, p in zip(node.input, order, strict=False)):
                found.update(trial)
                if label:
                    found["@" + label] = node
                return True
        return False


def put_in_front(foreign: Foreign, front: Mapping[str, Sequence[onnx.NodeProto]]) -> None:
    """Insert nodes, each row of them in front of the node whose first output is named. Every node becomes a copy."""
    graph = foreign.model.graph
    nodes = [each for node in graph.node for each in (*front.get(node.output[0], ()), node)]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def shapes(foreign: Foreign) -> Shapes:
    """Value → its shape as `fix_shapes` saw it, else as ONNX infers it; None for a dimension that is not known."""
    import onnx

    if foreign.shapes:
        return foreign.shapes
    inferred = onnx.shape_inference.infer_shapes(foreign.model).graph  # its data_prop would count a Range of any length
    found: Shapes = {}
    for value in [*inferred.value_info, *inferred.input, *inferred.output]:
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    found.update({t.name: tuple(t.dims) for t in foreign.model.graph.initializer})
    return found


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, text as str."""
    from onnx import helper

    for found in node.attribute:
        if found.name == name:
            value = helper.get_attribute_value(found)
            return value.decode() if isinstance(value, bytes) else value
    return default


def rename(foreign: Foreign, names: Mapping[str, str]) -> None:
    """Let every reader of a value, also those in nested graphs, read another one."""
    for graph, depth in graphs(foreign.model.graph):
        for node in graph.node:
            for i, name in enumerate(node.input):
                while name in names:
                    name = names[name]
                node.input[i] = name
        for output in graph.output if depth else ():
            while output.name in names:
                output.name = names[output.name]


def drop_unread(foreign: Foreign) -> int:
    """Remove the nodes and constants that no output needs; how many nodes."""
    graph = foreign.model.graph
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(reads(node))
    dropped = len(graph.node) - len(kept)
    inputs = [i for i in graph.input if i.name not in foreign.weights or i.name in needed]
    initializers = [t for t in graph.initializer if t.name in needed]
    for field, values in ((graph.node, kept[::-1]), (graph.input, inputs), (graph.initializer, initializers)):
        copies = [type(v).FromString(v.SerializeToString()) for v in values]
        del field[:]  # type: ignore[attr-defined]
        field.extend(copies)
    for name in set(foreign.weights) - needed:
        del foreign.weights[name]
    return dropped


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, its nested graphs included."""
    yield from node.input
    for held in node.attribute:
        for nested in [*([held.g] if held.HasField("g") else []), *held.graphs]:
            for graph, _ in graphs(nested):
                for inner in graph.node:
                    yield from inner.input
                yield from (output.name for output in graph.output)

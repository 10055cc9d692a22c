"""A cleaned ONNX graph as a torch module: a step for each node, run in order.

A value is a tensor, or an array where it does not depend on the image: shapes are worked out by arrays in every forward
and are constants in every trace, so one module serves every batch that the graph itself serves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgevit.errors import GraphError, LoadError
from edgevit.from_onnx.editing import reads
from edgevit.from_onnx.fix_input import Ends
from edgevit.from_onnx.host import MOST_ELEMENTS, evaluate, opset_of
from edgevit.from_onnx.operators import OPERATORS, why_not
from edgevit.from_onnx.read import Foreign, label
from edgevit.load_timm import first_line

if TYPE_CHECKING:
    import onnx

Values = dict[str, Any]
Seen = dict[str, "np.ndarray | tuple[int, ...]"]
FAILURES = (ValueError, RuntimeError, TypeError, LookupError, ArithmeticError, NotImplementedError, AttributeError)


class Constants:
    """The known tensors of a graph: arrays, and each once as a parameter."""

    def __init__(self, foreign: Foreign) -> None:
        from onnx import numpy_helper

        self.large = foreign.weights
        self.small = {t.name: numpy_helper.to_array(t) for t in foreign.model.graph.initializer}
        self.parameters: dict[str, nn.Parameter] = {}

    def array(self, name: str) -> np.ndarray | None:
        """The constant's numbers, or None for what is none."""
        found = self.small.get(name)
        return self.large.get(name) if found is None else found

    def parameter(self, name: str) -> nn.Parameter:
        """The constant as a parameter without gradient; its readers share it."""
        if name not in self.parameters:
            value = self.array(name)
            assert value is not None
            tensor = torch.from_numpy(value if value.flags.writeable and value.ndim else value.copy())
            self.parameters[name] = nn.Parameter(tensor, requires_grad=False)
        return self.parameters[name]


class Step(nn.Module):
    """One node."""

    def __init__(self, node: onnx.NodeProto, opset: int, constants: Constants) -> None:
        from onnx import helper

        super().__init__()
        self.node, self.opset = node, opset
        domain = "" if node.domain == "ai.onnx" else node.domain
        self.operator = OPERATORS.get((domain, node.op_type))
        self.why_not = why_not(domain, node.op_type)
        self.on_host = not domain
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute if not a.HasField("g")}
        self.attributes = {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
        self.fixed: list[np.ndarray | None] = []
        for i, name in enumerate(node.input):
            value = constants.array(name) if name else None
            self.fixed.append(value if value is not None and name in constants.small else None)
            if value is None or self._is_number(i, value):
                continue
            self.register_parameter(f"operand{i}", constants.parameter(name))
            self.on_host &= name in constants.small

    def _is_number(self, place: int, value: np.ndarray) -> bool:
        """Whether the operator takes it as an array or a number, and needs no tensor of it."""
        operator = self.operator
        if operator is None or place in operator.host or place in operator.either:
            return True
        return operator.scalars and value.size == 1 and value.ndim < 2

    def forward(self, values: list[Any]) -> list[Any]:
        """Inputs that are no constants, None at the places of those that are → outputs."""
        if self.node.op_type == "Shape" and values[0] is not None:
            shape = np.array([int(s) for s in values[0].shape], dtype=np.int64)
            return [shape[self.attributes.get("start", 0) : self.attributes.get("end", len(shape))]]
        if self.node.op_type == "Size" and values[0] is not None:
            return [np.array(math.prod(int(s) for s in values[0].shape), dtype=np.int64)]
        if self.on_host and not any(isinstance(value, Tensor) for value in values):
            whole = [fixed if value is None else value for value, fixed in zip(values, self.fixed, strict=True)]
            return list(evaluate(self.node, self.opset, whole))
        if self.operator is None:
            raise ValueError(self.why_not)
        results = self.operator.run(self.attributes, *self._arguments(values))
        return list(results) if isinstance(results, tuple | list) else [results]

    def _arguments(self, values: list[Any]) -> list[Any]:
        """Each input in the form that the operator takes it in."""
        assert self.operator is not None
        arguments = []
        for i, value in enumerate(values):
            value = self.fixed[i] if value is None else value
            operand = getattr(self, f"operand{i}", None)
            if i in self.operator.host and isinstance(value, Tensor):
                raise ValueError(f"input {i} ({self.node.input[i]}) depends on the image; engines need static shapes")
            if operand is not None:
                value = operand
            elif isinstance(value, np.ndarray):
                value = self._given(i, value)
            arguments.append(value)
        return arguments

    def _given(self, place: int, value: np.ndarray) -> Any:
        assert self.operator is not None
        if place in self.operator.host or place in self.operator.either:
            return value
        if self.operator.scalars and value.size == 1 and value.ndim < 2:
            return value.item()
        return torch.tensor(value)


class Branches(nn.Module):
    """If, on a condition that does not depend on the image."""

    def __init__(self, node: onnx.NodeProto, opset: int, constants: Constants) -> None:
        super().__init__()
        self.node = node
        self.fixed = constants.array(node.input[0])
        for attribute in node.attribute:
            self.add_module(attribute.name, Steps(attribute.g, opset, constants))
        self.outputs = {a.name: [o.name for o in a.g.output] for a in node.attribute}
        self.constants = constants

    def forward(self, condition: Any, values: Values) -> list[Any]:
        """The outputs of the branch that is taken."""
        condition = self.fixed if condition is None else condition
        if isinstance(condition, Tensor):
            raise ValueError("its condition depends on the image")
        name = "then_branch" if bool(condition.reshape(())) else "else_branch"
        inner = dict(values)
        branch = getattr(self, name)
        branch(inner)
        outputs = self.outputs[name]
        return [inner[o] if o in inner else self.constants.array(o) for o in outputs]


class Steps(nn.Module):
    """The nodes of a graph in order, each a module under its own name."""

    def __init__(self, graph: onnx.GraphProto, opset: int, constants: Constants) -> None:
        from onnx import numpy_helper

        super().__init__()
        self.own: dict[str, np.ndarray] = {}
        if graph.initializer and not set(constants.small).issuperset(t.name for t in graph.initializer):
            self.own = {t.name: numpy_helper.to_array(t) for t in graph.initializer}  # of a nested graph
        last = {name: i for i, node in enumerate(graph.node) for name in reads(node)}
        kept = {o.name for o in graph.output}
        self.drops: list[list[str]] = [[] for _ in graph.node]
        for name, i in last.items():
            if name not in kept:
                self.drops[i].append(name)
        for node in graph.node:
            kind = Branches if node.op_type == "If" else Step
            self.add_module(unique_name(self, node), kind(node, opset, constants))

    def forward(self, values: Values, seen: Seen | None = None) -> None:
        """Add what the nodes compute to `values`, and drop what nobody reads any more."""
        values.update(self.own)
        for step, drops in zip(self.children(), self.drops, strict=True):
            compute(step, values, seen)
            for name in drops:
                values.pop(name, None)


def unique_name(module: nn.Module, node: onnx.NodeProto) -> str:
    """A child's name from a node's: no dots, none twice."""
    name = label(node).strip("/").replace("/", "_").replace(".", "_").replace("::", "_") or node.op_type
    unique, i = name, 1
    while unique in module._modules or hasattr(module, unique):
        unique, i = f"{name}_{i}", i + 1
    return unique


def compute(step: nn.Module, values: Values, seen: Seen | None = None) -> None:
    """Add what a step computes from `values` to them. Raises LoadError with the node's name."""
    node: Any = step.node
    given = [values.get(name) if name else None for name in node.input]
    try:
        results = step(given[0], values) if isinstance(step, Branches) else step(given)
    except FAILURES as error:
        raise LoadError(f"node {label(node)} ({node.op_type}): {first_line(error)}") from error
    for name, result in zip(node.output, results, strict=False):
        if not name:
            continue
        if result is None or math.prod(result.shape) > MOST_ELEMENTS:
            what = "is not computed" if result is None else f"has {math.prod(result.shape):,} numbers"
            raise LoadError(f"node {label(node)} ({node.op_type}): output {name} {what}")
        values[name] = result
        if seen is not None:
            seen[name] = result if isinstance(result, np.ndarray) else tuple(int(s) for s in result.shape)


class ForeignModel(nn.Module):
    """Images `[B, 3, H, W]` → the chosen output of a foreign ONNX graph."""

    def __init__(self, foreign: Foreign) -> None:
        super().__init__()
        assert foreign.ends is not None
        self.ends: Ends = foreign.ends
        masked = foreign.keep is not None and bool(foreign.keep.masks)
        self.batch = 1 if masked else self.ends.batch  # a mask is of one image
        self.file = foreign.name
        self.graph = Steps(foreign.model.graph, opset_of(foreign.model), Constants(foreign))

    def forward(self, images: Tensor, seen: Seen | None = None) -> Tensor:
        """The model's output. seen: takes note of every value. Raises GraphError for another batch than the file's."""
        self.check_batch(images)
        values: Values = {self.ends.image: images.permute(0, 2, 3, 1) if self.ends.last else images}
        self.graph(values, seen)
        output = values.get(self.ends.output)
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:1] != images.shape[:1]:
            shape = None if output is None else tuple(output.shape)
            raise LoadError(f"{self.file}: output {self.ends.output} has the shape {shape}; expected [batch, ...]")
        return output

    def check_batch(self, images: Tensor) -> None:
        """Raise GraphError for another batch than the file's."""
        if self.batch is not None and images.shape[0] != self.batch:
            raise GraphError(
                f"{self.file} was exported for batch {self.batch}, and gets {images.shape[0]}; pass --batch "
                f"{self.batch}, or export it with a dynamic batch"
            )


def build(foreign: Foreign) -> ForeignModel:
    """The module of a graph, every shape of it worked out once. Raises LoadError with the node's name."""
    module = ForeignModel(foreign).eval()
    observe(module, module.batch or 1)
    return module


def observe(module: ForeignModel, batch: int) -> Seen:
    """Run every node on a tensor that has a shape and no memory; arrays and shapes of the main graph's values.

    Raises LoadError.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    seen: Seen = {}
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        try:
            module(torch.empty(batch, 3, *module.ends.size), seen)
        except LoadError as error:
            raise LoadError(f"{module.file}: {error}") from error
    return seen

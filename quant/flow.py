"""What of a traced program depends on the image: nodes in order, who leads to whom, and which of them are layers.

Everything here is dataflow and shapes; no operator is judged by the name of its model or module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from edgevit.export.rewrite import Node
from edgevit.quant.scheme import MOVES

if TYPE_CHECKING:
    from torch.fx import GraphModule

NORMS = {"batch_norm", "layer_norm", "native_layer_norm", "group_norm", "instance_norm", "rms_norm"}
CONTRACTIONS = {"matmul", "bmm", "mm", "baddbmm", "einsum"}
ATTENTION = "scaled_dot_product_attention"
LAYOUT = MOVES | {"reshape_as", "view_as", "expand_as"}  # the values of the first input, elsewhere


class Flow:
    """The compute nodes of a program, in order, and the image-dependent inputs of each (the image itself is none)."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.inputs: dict[Node, list[Node]] = {}
        variable: set[Node] = set()
        for node in module.graph.nodes:
            if node.op == "placeholder":
                variable.add(node)
            elif node.op == "call_function" and not variable.isdisjoint(node.all_input_nodes):
                if node.meta.get("val") is None:
                    continue  # an assertion
                variable.add(node)
                self.inputs[node] = [n for n in node.all_input_nodes if n in variable and n.op != "placeholder"]

    @cached_property
    def image(self) -> Node:
        """The input `[B, 3, H, W]`."""
        return next(n for n in self.module.graph.nodes if n.op == "placeholder")

    @cached_property
    def nodes(self) -> list[Node]:
        """In order of computation."""
        return list(self.inputs)

    @cached_property
    def bit(self) -> dict[Node, int]:
        """Sets of nodes are integers: one bit a node."""
        return {node: 1 << i for i, node in enumerate(self.inputs)}

    @cached_property
    def above(self) -> dict[Node, int]:
        """Everything a node is computed from, itself included."""
        found: dict[Node, int] = {}
        for node, inputs in self.inputs.items():
            found[node] = self.bit[node]
            for other in inputs:
                found[node] |= found[other]
        return found

    @cached_property
    def below(self) -> dict[Node, int]:
        """Everything computed from a node, itself included."""
        found = dict(self.bit)
        for node in reversed(self.nodes):
            for other in self.inputs[node]:
                found[other] |= found[node]
        return found

    def bits(self, nodes: Iterable[Node]) -> int:
        """The set as an integer."""
        found = 0
        for node in nodes:
            found |= self.bit[node]
        return found

    def users(self, node: Node) -> list[Node]:
        """Compute nodes that read a node."""
        return [user for user in node.users if user in self.inputs]

    def operands(self, node: Node) -> list[Node]:
        """Image-dependent arguments, a tensor that is read twice counted twice."""
        flat = torch.utils._pytree.tree_leaves((node.args, node.kwargs))
        return [a for a in flat if isinstance(a, torch.fx.Node) and a in self.inputs]

    @cached_property
    def layers(self) -> set[Node]:
        """Linears and convolutions with a weight that does not depend on the image."""
        return {n for n in self.inputs if is_layer(n) and n.args[1] not in self.inputs}

    def strip(self, node: Node) -> Node:
        """The value that a chain of moves only lays out differently."""
        while operator(node) in LAYOUT and (len(self.inputs[node]) == 1 or operator(node).endswith("_as")):
            node = self.inputs[node][0]
        return node

    def back(self, start: Iterable[Node], stop: Callable[[Node], bool]) -> Iterator[Node]:
        """All nodes that lead to `start`, those included; nothing behind a node at which `stop` says so."""
        return _walk(start, self.inputs.__getitem__, stop)

    def forth(self, start: Iterable[Node], stop: Callable[[Node], bool]) -> Iterator[Node]:
        """The same in the direction of computation."""
        return _walk(start, self.users, stop)


def _walk(start: Iterable[Node], step: Callable[[Node], list[Node]], stop: Callable[[Node], bool]) -> Iterator[Node]:
    waiting, seen = list(start), set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if not stop(node):
            waiting += step(node)


def operator(node: Node) -> str:
    """The bare name of an operator: `aten.add_.Tensor` → `add`."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__).rstrip("_")
    return str(getattr(node.target, "__name__", node.target))


def is_integer(value: Any) -> bool:
    """Integers or booleans, of an example or a computed value; of several (a top-k's) the last counts: its indices."""
    value = value[-1] if isinstance(value, (list, tuple)) else value
    return isinstance(value, torch.Tensor) and not value.is_floating_point()


def is_layer(node: Node) -> bool:
    """A Linear or a convolution, of whatever kind."""
    return operator(node) == "linear" or operator(node).startswith("conv")


def shape(node: Node) -> tuple[int, ...]:
    """The shape of a node's value; of the first one where there are several."""
    value = node.meta["val"]
    value = value[0] if isinstance(value, (list, tuple)) else value
    return tuple(getattr(value, "shape", ()))


def size(node: Node) -> int:
    """How many numbers a node's value has."""
    return int(torch.Size(shape(node)).numel())


def groups(layer: Node) -> int:
    """Of a convolution; 1 where it is dense, and for a Linear."""
    return int(layer.args[6] if len(layer.args) > 6 else layer.kwargs.get("groups", 1))


def pointwise(layer: Node) -> bool:
    """A Linear, or a convolution that sees one position."""
    return operator(layer) == "linear" or all(k == 1 for k in shape(layer.args[1])[2:])


def multiplies(module: Any, node: Node) -> bool:
    """A contraction, or a subprogram (an autocast region) that holds one."""
    if operator(node) in CONTRACTIONS or operator(node) == ATTENTION:
        return True
    for argument in node.args:
        if isinstance(argument, torch.fx.Node) and argument.op == "get_attr":
            inner = getattr(module, str(argument.target), None)
            if isinstance(inner, torch.fx.GraphModule):
                return any(n.op == "call_function" and multiplies(inner, n) for n in inner.graph.nodes)
    return False

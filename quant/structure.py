"""Attention, residual streams, gates and the head of a program, found by dataflow and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from edgevit.export.rewrite import Node
from edgevit.places import REDUCER, classes
from edgevit.quant.flow import (
    ATTENTION,
    LAYOUT,
    NORMS,
    Flow,
    groups,
    is_layer,
    multiplies,
    operator,
    pointwise,
    shape,
    size,
)

POOLS = {"mean", "sum", "amax", "max", "std", "var", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d"}


@dataclass(frozen=True)
class Skip:
    """A residual add: `add = source + branch(source)`; `branch` is a set of nodes (Flow.bits)."""

    add: Node
    source: Node
    branch: int


class Structure:
    """Sets of nodes of one program, each worked out once."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.inputs, self.bit = flow.inputs, flow.bit

    # attention

    @cached_property
    def products(self) -> set[Node]:
        """Products of two activations: contractions, weights that are activations, weighted sums that weigh again."""
        flow = self.flow
        found = {
            n
            for n in flow.nodes
            if (multiplies(flow.module, n) and (len(flow.operands(n)) > 1 or operator(n) == ATTENTION))
            or (is_layer(n) and n.args[1] in flow.inputs)
        }
        for node in flow.nodes:
            if operator(node) == "sum" and self._multiplies_two(self.inputs[node][0]):
                again = [n for n in flow.forth([node], self._ends_sum) if self._multiplies_two(n)]
                found.update([self.inputs[node][0], node, *again] if again else [])
        return found

    def _multiplies_two(self, node: Node) -> bool:
        return operator(node) == "mul" and len(self.inputs[node]) == 2

    def _ends_sum(self, node: Node) -> bool:
        return node in self.flow.layers or operator(node) in NORMS or self._multiplies_two(node)

    @cached_property
    def reducers(self) -> set[Node]:
        """What decides on tokens and moves them."""
        return {n for n in self.flow.nodes if any(c.endswith(REDUCER) for c in classes(n))}

    @cached_property
    def seeds(self) -> set[Node]:
        """Products, softmax in front of one, and layers on the scores between (talking heads), outside reducers."""
        found = self.products - self.reducers
        for softmax in self.flow.nodes:
            if operator(softmax) == "softmax" and softmax not in self.reducers:
                ahead, behind = (self._scores(softmax, walk) for walk in (self.flow.forth, self.flow.back))
                if ahead & self.products:
                    found |= {softmax} | (ahead & self.flow.layers)
                    found |= behind & self.flow.layers if behind & self.products else set()
        return found

    def _scores(self, softmax: Node, walk: Callable[[list[Node], Callable[[Node], bool]], Iterator[Node]]) -> set[Node]:
        """What scores meet on their way from or to a softmax: at the end a product, a norm, or another size."""

        def ends(node: Node) -> bool:
            joins = operator(node) in NORMS or len(self.inputs[node]) > 1
            return node in self.products or joins or (node in self.flow.layers and size(node) != size(softmax))

        met = walk([softmax], ends)
        return {n for n in met if n in self.products or n not in self.flow.layers or size(n) == size(softmax)}

    @cached_property
    def core(self) -> set[Node]:
        """Seeds, what is elementwise or a move in front of them up to the projections, and divisions behind them."""
        found = self.reducers | self.seeds
        inputs = [n for seed in self.seeds for n in self.inputs[seed]]
        found |= {n for n in self.flow.back(inputs, self._ends_core) if not self._ends_core(n)}
        return found | set(self._quotients(found))

    def _ends_core(self, node: Node) -> bool:
        if node in self.seeds:
            return False
        if self.ends(node) or node in self.gates or node in self.reducers:
            return True
        return operator(node) in NORMS and not self._norm_of_projection(node)

    def _norm_of_projection(self, node: Node) -> bool:
        """A norm on queries or keys; a batch norm is a part of the layer it follows."""
        return operator(node) != "batch_norm" and self.flow.strip(self.inputs[node][0]) in self.flow.layers

    def _quotients(self, core: set[Node]) -> Iterator[Node]:
        """Arithmetic between two results of the core, as `q(kᵀv) / (q Σk)`."""
        tail: set[Node] = set()
        for node in self.flow.nodes:
            inputs = self.inputs[node]
            light = node not in core and not is_layer(node) and operator(node) not in NORMS and node not in self.skips
            if light and inputs and all(n in core or n in tail for n in inputs):
                tail.add(node)
                if len(inputs) > 1 and operator(node) not in LAYOUT:
                    yield from (n for n in self.flow.back([node], lambda n: n not in tail) if n in tail)

    @cached_property
    def entries(self) -> set[Node]:
        """Layers whose values attention multiplies."""
        return self._next_layers(self.flow.back, [n for seed in self.seeds for n in self.inputs[seed]])

    @cached_property
    def projections(self) -> set[Node]:
        """Layers that read what attention gives."""
        return self._next_layers(self.flow.forth, [n for seed in self.seeds for n in self.flow.users(seed)])

    def _next_layers(
        self, walk: Callable[[list[Node], Callable[[Node], bool]], Iterator[Node]], start: list[Node]
    ) -> set[Node]:
        return (set(walk(start, self.ends)) & self.flow.layers) - self.core

    # residual streams

    def ends(self, node: Node) -> bool:
        """Where walks between layers end."""
        return node in self.flow.layers or node in self.skips

    @cached_property
    def skips(self) -> dict[Node, Skip]:
        """Adds whose one operand is, through moves, a value that the other is computed from."""
        found = {}
        for node in self.flow.nodes:
            inputs = self.inputs[node]
            if operator(node) == "add" and len(inputs) == 2:
                for skip, branch in (inputs, inputs[::-1]):
                    source = self._source(skip, branch)
                    if source is not None and size(source) == size(node):
                        inside = self.flow.below[source] & self.flow.above[branch] & ~self.bit[source]
                        found[node] = Skip(node, source, inside)
                        break
        return found

    def _source(self, skip: Node, branch: Node) -> Node | None:
        while not self.bit[skip] & self.flow.above[branch]:
            if operator(skip) not in LAYOUT or len(self.inputs[skip]) != 1:
                return None
            skip = self.inputs[skip][0]
        return skip

    @cached_property
    def attends(self) -> list[Skip]:
        """Residual adds with attention in their branch."""
        seeds = self.flow.bits(self.seeds)
        return [skip for skip in self.skips.values() if skip.branch & seeds]

    @cached_property
    def stream(self) -> set[Node]:
        """Residual adds of transformer blocks: theirs or an earlier branch of their stream holds attention."""
        found = {skip.add for skip in self.attends}
        for add, skip in self.skips.items():
            if self._attended(skip.source, found):
                found.add(add)
        return found

    def reads_stream(self, layer: Node) -> bool:
        """Whether a layer reads a transformer stream."""
        return any(self.attended(value) for value in self.inputs[layer][:1])

    def attended(self, value: Node) -> bool:
        """Whether a value comes from attention with no layer between but its output projection."""
        return self._attended(value, self.stream)

    def _attended(self, value: Node, stream: set[Node]) -> bool:
        given = (stream, self.projections, self.seeds)
        return any(node in nodes for node in self.flow.back([value], self._ends_stream) for nodes in given)

    def joins(self, layer: Node, given: set[Node]) -> bool:
        """Whether what a layer gives meets what `given` give, in front of the next layer or residual add."""
        ahead = set(self.flow.forth(self.flow.users(layer), self.ends))
        beside = set(self.flow.forth([user for node in given for user in self.flow.users(node)], self.ends))
        return any(not self.ends(node) and node not in self.core for node in ahead & beside)

    def is_local(self, layer: Node) -> bool:
        """Depthwise, and as large as its input: it may stand in a residual stream."""
        return not pointwise(layer) and groups(layer) > 1 and shape(layer) == shape(self.inputs[layer][0])

    def _ends_stream(self, node: Node) -> bool:
        through = node in self.flow.layers and self.inputs[node] and self.is_local(node)
        return not through and (self.ends(node) or node in self.seeds)

    @cached_property
    def streamed(self) -> set[Node]:
        """The values of transformer streams, and those they start from."""
        return self.stream | {self.flow.strip(self.skips[add].source) for add in self.stream}

    def feeds_forward(self, skip: Skip) -> bool:
        """Whether a branch has 1x1 and grouped convolutions or Linears only, and no gate."""
        inside = [n for n in self.flow.nodes if skip.branch & self.bit[n]]
        dense = any(n in self.flow.layers and not pointwise(n) and groups(n) == 1 for n in inside)
        return not dense and not any(n in self.gates for n in inside)

    # gates and the head

    @cached_property
    def gates(self) -> dict[Node, Node]:
        """Nodes of squeeze-excite gates, each with the map that its gate multiplies."""
        found: dict[Node, Node] = {}
        for node in self.flow.nodes:
            if self._multiplies_two(node):
                for value, gate in (self.inputs[node], self.inputs[node][::-1]):
                    nodes = self._gate(value, gate)
                    found |= dict.fromkeys([*nodes, node] if nodes else [], value)
        return found

    def _gate(self, value: Node, gate: Node) -> list[Node]:
        """The nodes from poolings of `value` to `gate`; none where there is another way, or no layer."""
        above = self.flow.above[value]

        def pools(node: Node) -> bool:
            return operator(node) in POOLS and any(self.bit[self.flow.strip(n)] & above for n in self.inputs[node])

        nodes = list(self.flow.back([gate], pools))
        direct = any(self.bit[n] & above or not self.inputs[n] for n in nodes)
        return nodes if not direct and any(n in self.flow.layers for n in nodes) else []

    @cached_property
    def head(self) -> set[Node]:
        """From the outputs back to the last pooling, as long as a value has one position."""
        flow = self.flow
        batch = flow.image.meta["val"].shape[0]

        def inside(node: Node) -> bool:
            sizes = shape(node)
            one = sizes[2:] == (1, 1) if len(sizes) == 4 else len(sizes) == 1 or (len(sizes) == 2 and sizes[0] == batch)
            return one and node not in self.core and node not in self.skips

        outputs = [n for n in flow.module.graph.output_node().all_input_nodes if n in flow.inputs]
        return {n for n in flow.back(outputs, lambda n: operator(n) in POOLS or not inside(n)) if inside(n)}

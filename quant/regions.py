"""Which part of a hybrid Vision Transformer each node of a traced program is, and where the program can be cut.

Q-HyViT (arXiv:2303.12557) quantizes hybrids by the kind of block: convolutional stages, transformer blocks, and the
bridge blocks where one meets the other. Here the kind is read off dataflow and shapes, so it holds for any program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from edgevit.export.rewrite import Node
from edgevit.quant.flow import LAYOUT, NORMS, Flow, operator, pointwise
from edgevit.quant.layers import CONVS, LINEAR, layer_name
from edgevit.quant.structure import Structure

if TYPE_CHECKING:
    from torch.fx import GraphModule

STEM, CONV, BRIDGE, TRANSFORMER, RESIDUAL = "stem", "conv-stage", "bridge", "transformer", "transformer-residual"
CORE, GATE, HEAD = "attention-core", "gate", "head"
REGIONS = (STEM, CONV, BRIDGE, TRANSFORMER, RESIDUAL, CORE, GATE, HEAD)


def regions(module: GraphModule) -> dict[Node, str]:
    """The label of every compute node (one whose value depends on the image), in order.

    stem: layers that read the image, and what follows them up to the next layer or residual add.
    conv-stage: every other layer outside transformer blocks, with its norm, activation and adds.
    bridge: convolutions in front of the first attention of a residual stream (two deep where the nearer is 1x1; all of
    a residual block that ends there), and those that read what such a stream gives.
    transformer: Linears and convolutions in residual branches with attention, next to attention, and in the
    feed-forward branches (1x1 and grouped convolutions, no gate) of a stream behind its first attention.
    transformer-residual: the adds of such a stream, and its norms.
    attention-core: from the outputs of the projections to the last product of two activations; all of a reducer.
    gate: squeeze-excite, from the pooling to the multiplication. head: from the last pooling on.
    """
    return _labels(Structure(Flow(module)))


def _labels(parts: Structure) -> dict[Node, str]:
    layers = _layers(parts)
    found: dict[Node, str] = {}
    for node in parts.flow.nodes:
        found[node] = _own(node, parts, layers) or _inherited(node, parts, found)
    return found


def _own(node: Node, parts: Structure, layers: dict[Node, str]) -> str | None:
    """The label that a node has whatever it reads."""
    for label, nodes in ((GATE, parts.gates), (CORE, parts.core), (HEAD, parts.head), (RESIDUAL, parts.stream)):
        if node in nodes:
            return label
    normed = operator(node) in NORMS and parts.inputs[node]
    if normed and parts.flow.strip(normed[0]) in parts.streamed:
        return RESIDUAL
    return layers.get(node)


def _inherited(node: Node, parts: Structure, found: dict[Node, str]) -> str:
    """The label of what a node reads; of several, the one that says most."""
    labels = []
    for value in parts.inputs[node]:
        while value in parts.gates:  # behind a gate a map is what it was
            value = parts.gates[value]
        labels.append(found[value])
    if operator(node) == "add" and TRANSFORMER in labels and set(labels) - {TRANSFORMER, CORE}:
        return RESIDUAL  # a shortcut that is no identity
    if BRIDGE in labels:
        return BRIDGE
    label = next((n for n in labels if n != STEM), STEM)
    return TRANSFORMER if label == CORE and operator(node) not in LAYOUT else label


def _layers(parts: Structure) -> dict[Node, str]:
    """The label of each Linear and convolution."""
    found = {layer: _layer(layer, parts) for layer in parts.flow.nodes if layer in parts.flow.layers}
    behind = {n for n, label in found.items() if label == CONV and parts.reads_stream(n)}
    for layer in behind:  # a depthwise convolution or a Linear between two blocks leaves no stream
        found[layer] = TRANSFORMER if operator(layer) == "linear" or parts.is_local(layer) else BRIDGE
    for layer in [n for n, label in found.items() if label == CONV]:
        if parts.joins(layer, parts.seeds):
            found[layer] = TRANSFORMER  # local values beside attention's
        elif parts.joins(layer, parts.projections):
            found[layer] = BRIDGE  # a shortcut around the first attention
    for start in _streams(parts):
        _bridge(_in_front(start, parts), found)
    _bridge([n for n in found if _rejoins(n, behind, parts)], found)
    return found


def _layer(layer: Node, parts: Structure) -> str:
    """The label of a layer by the residual block it is in."""
    if not parts.flow.above[layer] & (parts.flow.bits(parts.flow.layers) ^ parts.bit[layer]):
        return STEM
    if layer in parts.entries or layer in parts.projections:
        return TRANSFORMER
    around = [skip for skip in parts.skips.values() if skip.branch & parts.bit[layer]]
    if not around:
        return CONV
    block = min(around, key=lambda skip: skip.branch.bit_count())
    if block in parts.attends:
        nested = any(s is not block and not s.branch & ~block.branch for s in parts.attends)
        return BRIDGE if nested and not pointwise(layer) else TRANSFORMER
    return TRANSFORMER if block.add in parts.stream and parts.feeds_forward(block) else CONV


def _streams(parts: Structure) -> Iterator[Node]:
    """Where streams of transformer blocks begin: what their first attention block reads."""
    inside = 0
    for skip in parts.attends:
        inside |= skip.branch
        if not parts.attended(skip.source):
            yield skip.source
    for layer in parts.entries:  # attention without a residual add
        if not parts.bit[layer] & inside and not parts.reads_stream(layer):
            yield from parts.inputs[layer][:1]


def _in_front(start: Node, parts: Structure) -> Iterator[Node]:
    """Layers that end in `start`: those of a residual block, else the nearest, and one more where that is 1x1."""
    for node in parts.flow.back([start], parts.ends):
        if node in parts.skips:
            yield from (n for n in parts.flow.layers if parts.bit[n] & parts.skips[node].branch)
        elif node in parts.flow.layers:
            yield node
            if pointwise(node):
                yield from (n for n in parts.flow.back(parts.inputs[node], parts.ends) if n in parts.flow.layers)


def _rejoins(layer: Node, behind: set[Node], parts: Structure) -> bool:
    """Whether a layer reads what leaves a stream beside what went around it, as MobileViT's fusion does."""
    read = {n for n in parts.flow.back(parts.inputs[layer], parts.ends) if parts.ends(n)}
    return any(parts.bit[n] & parts.flow.above[b] for b in read & behind for n in read - behind)


def _bridge(layers: Iterable[Node], found: dict[Node, str]) -> None:
    for layer in layers:
        if found[layer] == CONV:
            found[layer] = BRIDGE


@dataclass(frozen=True)
class Unit:
    """A stretch of the program that reads one image-dependent value and gives one.

    name: the module path that its layers share. region: that of most of its layers. source: the value it reads, for
    the first unit the image. sink: the value it gives. layers: its Linears and convolutions with constant weights.
    """

    name: str
    region: str
    nodes: tuple[Node, ...]
    source: Node
    sink: Node
    layers: tuple[Node, ...]


def units(module: GraphModule) -> tuple[Unit, ...]:
    """The program as a sequence of units for block reconstruction (Q-HyViT, arXiv:2303.12557).

    It is cut wherever one tensor is all of the image that is still needed. Stretches without a layer join a neighbour;
    bridge convolutions and the attention block behind them become one unit. Every compute node is in one unit, in
    order. Running a unit alone needs a copy of its source: a program may write in place.
    """
    flow = Flow(module)
    labels = _labels(Structure(flow))
    found: list[Unit] = []
    for source, sink, nodes in _cuts(flow):
        unit = _unit(nodes, source, sink, flow, labels)
        if found and _joins(found[-1], unit, labels):
            unit = _unit((*found[-1].nodes, *nodes), found.pop().source, sink, flow, labels)
        found.append(unit)
    if len(found) > 1 and not found[-1].layers:
        last = found.pop()
        found.append(_unit((*found[-1].nodes, *last.nodes), found.pop().source, last.sink, flow, labels))
    return tuple(found)


def _cuts(flow: Flow) -> Iterator[tuple[Node, Node, list[Node]]]:
    """Source, sink and nodes of the smallest stretches: they end where one tensor alone is still to be read."""
    place = {node: i for i, node in enumerate(flow.module.graph.nodes)}
    read = {flow.image: 0} | {node: place[node] for node in flow.nodes}  # the last place where each is read
    for node in (*flow.nodes, flow.module.graph.output_node()):
        read |= {value: place[node] for value in node.all_input_nodes if value in read}
    source, live, held = flow.image, {flow.image}, []
    for node in flow.nodes:
        held.append(node)
        live = {n for n in (*live, node) if read[n] > place[node]}
        sink = next(iter(live)) if len(live) == 1 else source
        if node is flow.nodes[-1] or (sink is not source and not isinstance(sink.meta["val"], (list, tuple))):
            yield source, sink, held
            source, held = sink, []


def _unit(nodes: Iterable[Node], source: Node, sink: Node, flow: Flow, labels: dict[Node, str]) -> Unit:
    nodes = tuple(nodes)
    layers = tuple(n for n in nodes if n in flow.layers and (n.target is LINEAR or n.target in CONVS))
    counts = Counter(labels[n] for n in layers or nodes)
    meets = BRIDGE in counts and any(labels[n] == CORE for n in nodes)
    name = _shared([layer_name(n) for n in layers or nodes])
    return Unit(name, BRIDGE if meets else counts.most_common(1)[0][0], nodes, source, sink, layers)


def _shared(paths: list[str]) -> str:
    """The module path that all begin with; where there is none, the first and the last."""
    steps = zip(*(path.split(".") for path in paths), strict=False)
    shared = ".".join(step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps))
    return shared or f"{paths[0]}..{paths[-1]}"


def _joins(before: Unit, unit: Unit, labels: dict[Node, str]) -> bool:
    """Whether a stretch belongs to the unit in front of it."""
    if not before.layers:
        return True
    if not unit.layers:
        return unit.region != HEAD
    meets = before.region == BRIDGE and not any(labels[n] == CORE for n in before.nodes)
    return meets and (unit.region == BRIDGE or any(labels[n] == CORE for n in unit.nodes))

"""Graph + images → QuantizedGraph: explicit Q/DQ around Linear and Conv, everything else float and listed.

Calibration streams all images once and keeps a bounded sample. Then every layer, in program order, gets the
equalization and the range of its input that serve its output best, and is corrected on what its quantized
predecessors really give it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgevit.errors import QuantError
from edgevit.export.rewrite import Node, rewrite, sweep
from edgevit.export.trace import export_program
from edgevit.quant.calibrate import Observed, observe
from edgevit.quant.correct import Quantized, correct, start
from edgevit.quant.equalize import Choice, Equalization, choose
from edgevit.quant.flow import operator
from edgevit.quant.fold import norm, producers
from edgevit.quant.insert import insert
from edgevit.quant.layers import CONVS, LINEAR, Group, Layer, find, layer_name
from edgevit.quant.ranges import fake_quantize, search
from edgevit.quant.scheme import KEPT_FLOAT, MOVES, OTHER_OPERATOR, Affine, QuantScheme
from edgevit.quant.streams import Values, walk
from edgevit.quant.weights import ungrouped
from edgevit.stages import Graph, QuantizedGraph, Refusal

if TYPE_CHECKING:
    import numpy as np
    from torch.fx import GraphModule

IMAGES = 32
"""Calibration batches that stay in memory for the corrections."""
QDQ = ("quantized_decomposed", "edgevit")  # libraries whose operators quantize or dequantize
MAPS = 4
"""Of these, how many a convolution's range is chosen on."""
Progress = Callable[[str, int, int], None]


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Calibration:
    """What the images showed, by node name of the rewritten program; quantizing again needs no more images."""

    graph: Graph
    rewrites: tuple[str, ...]
    seen: Mapping[str, Observed]
    images: tuple[torch.Tensor, ...]

    def program(self) -> tuple[GraphModule, tuple[str, ...]]:
        """A fresh rewritten module, its nodes named as in `seen`, and all passes that made it."""
        module = self.graph.program.module()
        done = rewrite(module, self.graph.inputs, self.rewrites)
        return module, (*self.graph.passes, *done)


def quantize(
    graph: Graph,
    scheme: QuantScheme,
    rewrites: Sequence[str],
    batches: Iterable[np.ndarray[Any, Any]],
    count: int,
    progress: Progress = _silent,
) -> QuantizedGraph:
    """Quantize a program after training.

    rewrites: exact float passes to run first (edgevit.export.rewrite.PASSES).
    batches: calibration images `[B, 3, H, W]`, preprocessed as in evaluation; count: how many batches there are.
    Raises QuantError when nothing can be quantized or calibration fails.
    """
    return apply(calibrate(graph, scheme, rewrites, batches, count, progress), scheme, progress=progress)


def calibrate(
    graph: Graph,
    scheme: QuantScheme,
    rewrites: Sequence[str],
    batches: Iterable[np.ndarray[Any, Any]],
    count: int,
    progress: Progress = _silent,
) -> Calibration:
    """Stream the images through the float program. Arguments and errors: as `quantize`."""
    module = graph.program.module()
    rewrite(module, graph.inputs, rewrites)
    groups, _ = find(module, scheme.layers)
    if not groups:
        raise QuantError("the program has no Linear or Conv with constant weights; there is nothing to quantize")
    kept: list[torch.Tensor] = []

    def watched() -> Iterator[np.ndarray[Any, Any]]:
        for index, batch in enumerate(batches):
            if index * IMAGES // count >= len(kept):  # spread over all of them
                kept.append(torch.from_numpy(batch))
            yield batch

    wanted = {group.source: group.is_conv for group in groups}
    wanted |= {_end(layer.node): True for group in groups for layer in group.layers if layer.is_conv}
    seen = observe(module, wanted, watched(), count, lambda done: progress("calibrate", done, count))
    return Calibration(graph, tuple(rewrites), {node.name: value for node, value in seen.items()}, tuple(kept))


def apply(
    calibration: Calibration, scheme: QuantScheme, keep: Mapping[str, str] | None = None, progress: Progress = _silent
) -> QuantizedGraph:
    """Decide, correct and write. keep: layers by name that stay float, with the reason."""
    module, passes = calibration.program()
    groups, refused = find(module, scheme.layers)
    decided = decide(module, groups, calibration, scheme, keep or {}, progress)
    refused += [Refusal(name, reason) for name, reason in (keep or {}).items()]
    refused += [
        Refusal(state.layer.name, reason)
        for state in decided.layers.values()
        if (reason := ungrouped(state.weight, scheme)) is not None
    ]
    insert(module, groups, decided.layers, decided.ends, decided.makers, scheme)
    sweep(module)
    kept = (*refused, *_kept(module))
    program = export_program(module, calibration.graph.inputs)
    return QuantizedGraph(program, calibration.graph.inputs, passes, kept, tuple(_log(groups, decided)))


@dataclass(frozen=True)
class Decided:
    """All layers with their integers, by node name, and the quantizers of convolutions' outputs.

    makers: source of a group → the layer that takes a rescale of it into its rows.
    """

    layers: dict[str, Quantized]
    ends: dict[str, Affine]
    makers: dict[Node, Node]


def decide(
    module: GraphModule,
    groups: Sequence[Group],
    calibration: Calibration,
    scheme: QuantScheme,
    keep: Mapping[str, str],
    progress: Progress = _silent,
) -> Decided:
    """Choose and correct, layer after layer in program order, on the inputs that the quantized program has there."""
    home = {layer.node: (group, layer) for group in groups for layer in group.layers if layer.name not in keep}
    choices: dict[Node, Choice | None] = {}
    makers = producers(module, groups, calibration.images[0]) if scheme.equalize else {}
    decided = Decided({}, {}, makers)
    if scheme.conv_outputs:
        decided.ends.update(_ends(home, calibration, scheme))

    def visit(node: Node, x_float: Values, x: Values, want: Values) -> Values:
        if node in home:
            group, layer = home[node]
            if group.source not in choices:
                choices[group.source] = _choice(group, home, calibration.seen, x_float, decided, scheme)
            state = start(layer, choices[group.source], scheme)
            out = correct(state, x, want, scheme)
            decided.layers[node.name] = state
            progress("quantize", len(decided.layers), len(home))
        else:
            out = [node.target(value, *node.args[1:]) for value in x]
        if node.name in decided.ends:
            out = [fake_quantize(value, decided.ends[node.name]) for value in out]
        return out

    ends = {node for node in module.graph.nodes if node.name in decided.ends}
    walk(module, calibration.images, visit, set(home) | ends)
    return decided


def _choice(
    group: Group,
    home: Mapping[Node, tuple[Group, Layer]],
    seen: Mapping[str, Observed],
    x: Values,
    decided: Decided,
    scheme: QuantScheme,
) -> Choice | None:
    """How the group's input is quantized; None where activations stay float."""
    if scheme.activations is None:
        return None
    if group.source.name in decided.ends:  # quantized where it was made
        return Choice(Equalization(), decided.ends[group.source.name], "output", 0.0)
    observed = seen[group.source.name]
    active = Group(group.source, tuple(layer for layer in group.layers if layer.node in home))
    whole = len(active.layers) == len(group.layers)
    free, centre = whole and (norm(group) or group.source in decided.makers), whole and norm(group)
    sample = torch.cat(x[:MAPS]) if group.is_conv else observed.rows
    return choose(active, observed, sample, scheme, free, centre, _is_image(group.source))


def _is_image(node: Node) -> bool:
    """The program's input, or a mere rearrangement of it."""
    while node.op == "call_function" and operator(node) in MOVES and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return bool(node.op == "placeholder")


FUSED = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)


def _end(node: Node) -> Node:
    """Where a convolution's output is quantized: behind its ReLU, which runtimes fuse."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and user.target in FUSED else node


def _ends(
    home: Mapping[Node, tuple[Group, Layer]], calibration: Calibration, scheme: QuantScheme
) -> Iterator[tuple[str, Affine]]:
    """Quantizers of convolutions' outputs, but where all that reads them are layers that quantize it anyway."""
    for node, (_, layer) in home.items():
        end = _end(node)
        if layer.is_conv and not all(user in home for user in end.users):
            seen = calibration.seen[end.name]
            yield end.name, search(seen.rows, seen.low, seen.high, scheme)


def _log(groups: Sequence[Group], decided: Decided) -> Iterator[dict[str, Any]]:
    for group in groups:
        layers = [decided.layers[layer.node.name] for layer in group.layers if layer.node.name in decided.layers]
        if not layers:
            continue
        choice = layers[0].choice
        yield {
            "layers": [state.layer.name for state in layers],
            "equalization": choice.equalization.name if choice else None,
            "range": choice.range if choice else None,
            "scale": choice.quantizer.scale if choice else None,
            "error": choice.error if choice else None,
            "steps": {state.layer.name: state.steps for state in layers if state.steps},
        }


def _kept(module: GraphModule) -> list[Refusal]:
    """Every float operator that computes, with its reason; Linears and convolutions are find()'s matter."""
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target is LINEAR or node.target in CONVS:
            continue
        name = operator(node)
        value = node.meta.get("val")
        is_float = value is None or not hasattr(value, "dtype") or value.dtype.is_floating_point
        if is_float and name not in MOVES and getattr(node.target, "namespace", "") not in QDQ:
            reason = KEPT_FLOAT.get(name, OTHER_OPERATOR)
            found.append(Refusal(f"{layer_name(node)} ({name})", reason))
    return found

"""Graph + images → QuantizedGraph: explicit Q/DQ around Linear and Conv, everything else float and listed.

Calibration streams all images once, keeps a bounded sample, and gives the input of every layer the equalization and
the range that serve its output best. Then every layer, in program order, is corrected on what its quantized
predecessors really give it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgevit.export.rewrite import Node, sweep
from edgevit.export.trace import export_program
from edgevit.progress import Progress, silent
from edgevit.quant import residuals
from edgevit.quant.calibration import Calibration, calibrate, end
from edgevit.quant.correct import Quantized, correct, start
from edgevit.quant.equalize import Choice, Equalization
from edgevit.quant.flow import operator
from edgevit.quant.insert import insert
from edgevit.quant.layers import CONVS, LINEAR, Group, Layer, layer_name
from edgevit.quant.observe import Observed
from edgevit.quant.ranges import fake_quantize, search
from edgevit.quant.reconstruct import Reconstruction
from edgevit.quant.rules import quantizable
from edgevit.quant.scheme import KEPT_FLOAT, MOVES, OTHER_OPERATOR, Affine, QuantScheme
from edgevit.quant.streams import Values, walk
from edgevit.quant.weights import ungrouped
from edgevit.stages import Graph, QuantizedGraph, Refusal

if TYPE_CHECKING:
    import numpy as np
    from torch.fx import GraphModule

QDQ = ("quantized_decomposed", "edgevit")  # libraries whose operators quantize or dequantize


def quantize(
    graph: Graph,
    scheme: QuantScheme,
    rewrites: Sequence[str],
    batches: Iterable[np.ndarray[Any, Any]],
    count: int,
    progress: Progress = silent,
) -> QuantizedGraph:
    """Quantize a program after training.

    rewrites: exact float passes to run first (edgevit.export.rewrite.PASSES).
    batches: calibration images `[B, 3, H, W]`, preprocessed as in evaluation; count: how many batches there are.
    Raises QuantError when nothing can be quantized or calibration fails.
    """
    return apply(calibrate(graph, scheme, rewrites, batches, count, progress), progress=progress)


def apply(
    calibration: Calibration, keep: Mapping[str, str] | None = None, progress: Progress = silent
) -> QuantizedGraph:
    """Correct and write. keep: layers by name that stay float, with the reason."""
    scheme = calibration.scheme
    module, passes = calibration.program()
    groups, refused = quantizable(module, scheme)
    decided = decide(module, groups, calibration, keep or {}, progress)
    refused += [Refusal(name, reason) for name, reason in (keep or {}).items()]
    refused += [
        Refusal(state.layer.name, reason)
        for state in decided.layers.values()
        if (reason := ungrouped(state.weight, scheme.within(state.layer.region))) is not None
    ]
    insert(module, groups, decided.layers, decided.ends, calibration.makers, scheme)
    residuals.join(module)
    sweep(module)
    kept = (*refused, *_kept(module))
    program = export_program(module, calibration.graph.inputs)
    return QuantizedGraph(program, calibration.graph.inputs, passes, kept, tuple(_log(groups, decided)))


@dataclass(frozen=True)
class Decided:
    """All layers with their integers, and the quantizers of layers' outputs and residual inputs, by node name."""

    layers: dict[str, Quantized]
    ends: dict[str, Affine]


def decide(
    module: GraphModule,
    groups: Sequence[Group],
    calibration: Calibration,
    keep: Mapping[str, str],
    progress: Progress = silent,
) -> Decided:
    """Correct, layer after layer in program order, on the inputs that the quantized program has there."""
    scheme = calibration.scheme
    home = {layer.node: (group, layer) for group in groups for layer in group.layers if layer.name not in keep}
    choices: dict[Node, Choice | None] = {}
    decided = Decided({}, dict(_ends(home, calibration, scheme)))
    skips = residuals.inputs(module)

    def visit(node: Node, x_float: Values, x: Values, want: Values) -> Values:
        if node in home:
            group, layer = home[node]
            if group.source not in choices:
                choices[group.source] = _choice(group, home, calibration, x_float, decided)
            state = start(layer, choices[group.source], scheme.within(layer.region))
            out = correct(state, x, want, scheme.within(layer.region))
            decided.layers[node.name] = state
            progress("quantize", len(decided.layers), len(home))
        else:
            if node in skips:
                decided.ends[node.name] = _skip(node, choices, calibration.seen, scheme)
            out = [node.target(value, *node.args[1:]) for value in x]
        if node.name in decided.ends:
            out = [fake_quantize(value, decided.ends[node.name]) for value in out]
        return out

    ends = {node for node in module.graph.nodes if node.name in decided.ends}
    after = Reconstruction(module, decided.layers, scheme) if scheme.reconstruct else None
    walk(module, calibration.images, visit, {*home, *ends, *skips}, after)
    return decided


def _choice(
    group: Group, home: Mapping[Node, tuple[Group, Layer]], calibration: Calibration, x: Values, decided: Decided
) -> Choice | None:
    """How the group's input is quantized; None where activations stay float."""
    if calibration.scheme.activations is None:
        return None
    if group.source.name in decided.ends:  # quantized where it was made
        return Choice(Equalization(), decided.ends[group.source.name], "output", 0.0)
    active = tuple(layer for layer in group.layers if layer.node in home)
    if len(active) == len(group.layers):
        return calibration.choices[group.source.name]
    return calibration.choice(Group(group.source, active), False, x)


def _skip(
    node: Node, choices: Mapping[Node, Choice | None], seen: Mapping[str, Observed], scheme: QuantScheme
) -> Affine:
    """The quantizer of a residual add's input: that of the layers which read the same tensor, if they read it as is."""
    choice = choices.get(node.all_input_nodes[0])
    if choice is not None and not choice.equalization.moves:
        return choice.quantizer
    observed = seen[node.name]
    return search(observed.rows, observed.low, observed.high, scheme)


def _ends(
    home: Mapping[Node, tuple[Group, Layer]], calibration: Calibration, scheme: QuantScheme
) -> Iterator[tuple[str, Affine]]:
    """Quantizers of layers' outputs, but where all that reads them are layers that quantize it anyway."""
    for node, (_, layer) in home.items():
        last = end(node)
        if layer.kind in scheme.outputs and not all(user in home for user in last.users):
            seen = calibration.seen[last.name]
            yield last.name, search(seen.rows, seen.low, seen.high, scheme)


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
        if node.op != "call_function" or node.target is LINEAR or node.target in CONVS or residuals.DONE in node.meta:
            continue
        name = operator(node)
        value = node.meta.get("val")
        is_float = value is None or not hasattr(value, "dtype") or value.dtype.is_floating_point
        if is_float and name not in MOVES and getattr(node.target, "namespace", "") not in QDQ:
            reason = KEPT_FLOAT.get(name, OTHER_OPERATOR)
            found.append(Refusal(f"{layer_name(node)} ({name})", reason))
    return found

"""Graph + images → what they showed, and how each quantized input is quantized; the decisions that need no order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from edgevit.errors import QuantError
from edgevit.export.rewrite import Node, rewrite
from edgevit.progress import Progress, silent
from edgevit.quant import residuals
from edgevit.quant.equalize import Choice, choose
from edgevit.quant.fold import norm, producers
from edgevit.quant.layers import Group
from edgevit.quant.observe import Observed, observe
from edgevit.quant.rules import quantizable, reads_image
from edgevit.quant.scheme import QuantScheme
from edgevit.quant.streams import Values, walk
from edgevit.stages import Graph

if TYPE_CHECKING:
    import numpy as np
    from torch.fx import GraphModule

IMAGES = 100
"""Calibration batches that stay in memory for the corrections."""
MAPS = 4
"""Of these, how many a convolution's range is chosen on."""


@dataclass(frozen=True)
class Calibration:
    """What the images showed, by node name of the rewritten program; quantizing again needs no more images.

    makers: source of a group → the layer that takes a rescale of it into its rows. choices: source of a group → how it
    is quantized when all of the group's layers are.
    """

    graph: Graph
    rewrites: tuple[str, ...]
    scheme: QuantScheme
    seen: Mapping[str, Observed]
    images: tuple[torch.Tensor, ...]
    makers: Mapping[str, str]
    choices: Mapping[str, Choice]

    def program(self) -> tuple[GraphModule, tuple[str, ...]]:
        """A fresh rewritten module, its nodes named as in `seen`, and all passes that made it."""
        module, done = _rewritten(self.graph, self.rewrites, self.scheme)
        return module, (*self.graph.passes, *done)

    def choice(self, group: Group, whole: bool, x: Values) -> Choice:
        """How a group's input is quantized. whole: all layers that read it are in the group; x: float inputs."""
        seen = self.seen[group.source.name]
        centre = whole and norm(group)
        free = centre or (whole and group.source.name in self.makers)
        sample = torch.cat(x[:MAPS]) if group.is_conv else seen.rows
        scheme = self.scheme.within(*(layer.region for layer in group.layers))
        return choose(group, seen, sample, scheme, free, centre, reads_image(group.source))


def calibrate(
    graph: Graph,
    scheme: QuantScheme,
    rewrites: Sequence[str],
    batches: Iterable[np.ndarray[Any, Any]],
    count: int,
    progress: Progress = silent,
) -> Calibration:
    """Stream the images through the float program, and choose. Arguments, errors: as `edgevit.quant.apply.quantize`."""
    module, _ = _rewritten(graph, rewrites, scheme)
    groups, refused = quantizable(module, scheme)
    if not groups:
        why = "".join(f": {refusal.layer}: {refusal.reason}" for refusal in refused[:1])
        raise QuantError(f"the program has no Linear or Conv with constant weights; there is nothing to quantize{why}")
    kept: list[torch.Tensor] = []

    def watched() -> Iterator[np.ndarray[Any, Any]]:
        for index, batch in enumerate(batches):
            if index * IMAGES // count >= len(kept):  # spread over all of them
                kept.append(torch.from_numpy(batch))
            yield batch

    wanted = {group.source: group.is_conv for group in groups}
    made = [layer for group in groups for layer in group.layers if layer.kind in scheme.outputs]
    wanted |= {end(layer.node): layer.is_conv for layer in made} | dict.fromkeys(residuals.inputs(module), True)
    seen = observe(module, wanted, watched(), count, lambda done: progress("calibrate", done, count))
    named = {node.name: value for node, value in seen.items()}
    return chosen(Calibration(graph, tuple(rewrites), scheme, named, tuple(kept), {}, {}), scheme, progress)


def chosen(calibration: Calibration, scheme: QuantScheme, progress: Progress = silent) -> Calibration:
    """The same images under another scheme. Raises QuantError where it quantizes what was not observed."""
    calibration = replace(calibration, scheme=scheme)
    module, _ = calibration.program()
    groups, _ = quantizable(module, scheme)
    made = [end(layer.node) for group in groups for layer in group.layers if layer.kind in scheme.outputs]
    for node in (*(group.source for group in groups), *made, *residuals.inputs(module)):
        if node.name not in calibration.seen:
            raise QuantError(f"{node.name} was not observed: calibrate with the scheme that quantizes it")
    if scheme.activations is None:
        return replace(calibration, makers={}, choices={})
    makers = producers(module, groups, calibration.images[0]) if scheme.equalize else {}
    calibration = replace(calibration, makers={source.name: maker.name for source, maker in makers.items()})
    home = {layer.node: group for group in groups for layer in group.layers}
    choices: dict[str, Choice] = {}

    def visit(node: Node, x: Values, _: Values, want: Values) -> Values:
        group = home[node]
        if group.source.name not in choices:
            choices[group.source.name] = calibration.choice(group, True, x)
            progress("choose ranges", len(choices), len(groups))
        return want

    walk(module, calibration.images[:MAPS], visit, set(home))
    return replace(calibration, choices=choices)


def _rewritten(graph: Graph, rewrites: Sequence[str], scheme: QuantScheme) -> tuple[GraphModule, tuple[str, ...]]:
    module = graph.program.module()
    done = rewrite(module, graph.inputs, rewrites)
    residuals.split(module, scheme)
    return module, done


FUSED = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)


def end(node: Node) -> Node:
    """Where a layer's output is quantized: behind its ReLU, which runtimes fuse."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and user.target in FUSED else node

"""How much of the output error each part of a quantized program causes, and which layers to give back to float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from edgevit.distance import divergence
from edgevit.quant.calibration import Calibration
from edgevit.quant.correct import Quantized, start
from edgevit.quant.costs import node_macs
from edgevit.quant.regions import regions
from edgevit.quant.rules import quantizable
from edgevit.quant.streams import Values

if TYPE_CHECKING:
    from torch.fx import GraphModule


class Simulated(fx.Interpreter):
    """The float program with some of its layers quantized: images `[B, 3, H, W]` in, the program's output out."""

    def __init__(self, module: GraphModule, layers: Mapping[str, Quantized]) -> None:
        super().__init__(module)
        self.layers = layers

    def run_node(self, n: Any) -> Any:
        """A quantized layer by its integers, anything else as it is."""
        if n.name not in self.layers:
            return super().run_node(n)
        state = self.layers[n.name]
        return state.outputs([state.inputs(self.env[n.args[0]])])[0]


def damage(got: Values, want: Values) -> float:
    """How far outputs are from the float ones, mean over batches."""
    return sum(float(divergence(g, w).mean()) for g, w in zip(got, want, strict=True)) / len(want)


def rank(
    module: GraphModule,
    layers: Mapping[str, Quantized],
    parts: Mapping[str, Iterable[str]],
    images: Sequence[torch.Tensor],
) -> dict[str, float]:
    """Damage of quantizing one part alone, worst first. parts: node names of layers, by a name for the part."""
    with torch.no_grad():
        want = [module(image) for image in images]
        found = {}
        for name, nodes in parts.items():
            alone = Simulated(module, {node: layers[node] for node in nodes if node in layers})
            found[name] = damage([alone.run(image) for image in images], want)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


IMAGES = 16
"""Calibration images that parts are ranked on."""


@dataclass(frozen=True)
class Part:
    """Layers that share an input. damage: of quantizing them alone; share: of the program's multiply-accumulates."""

    layers: tuple[str, ...]
    region: str
    damage: float
    share: float


def parts(calibration: Calibration) -> list[Part]:
    """All quantized layers, those first whose float costs least time for the damage that it undoes."""
    module, _ = calibration.program()
    scheme, choices = calibration.scheme, calibration.choices
    groups, _ = quantizable(module, scheme)
    # corrections fit what predecessors do to a layer's input, so alone it is judged without them
    alone = {
        layer.node.name: start(layer, choices.get(group.source.name), scheme.within(layer.region))
        for group in groups
        for layer in group.layers
    }
    nodes = {group.source.name: [layer.node.name for layer in group.layers] for group in groups}
    damages = rank(module, alone, nodes, calibration.images[:IMAGES])
    macs, labels = node_macs(module), regions(module)
    total = max(sum(macs.values()), 1)
    found = []
    for group in groups:
        share = sum(macs.get(layer.node, 0) for layer in group.layers) / total
        names = tuple(dict.fromkeys(layer.name for layer in group.layers))
        found.append(Part(names, labels[group.layers[0].node], damages[group.source.name], share))
    return sorted(found, key=lambda part: (-part.damage / max(part.share, 1e-9), part.layers))

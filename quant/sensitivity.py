"""How much of the output error each part of a quantized program causes, and which layers to give back to float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from edgevit.quant.correct import Quantized
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
    """How far outputs are from the float ones, mean over images.

    Class scores `[B, classes]`: Kullback-Leibler divergence of the softmax; anything else: squared error over square.
    """
    total = 0.0
    for g, w in zip(got, want, strict=True):
        if w.ndim == 2 and w.shape[1] > 1:
            p = w.log_softmax(-1)
            total += float((p.exp() * (p - g.log_softmax(-1))).sum(-1).mean())
        else:
            total += float((g - w).square().sum() / w.square().sum().clamp_min(1e-30))
    return total / len(want)


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

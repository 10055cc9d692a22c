"""Block reconstruction: the integers of a whole unit learned together, so that it gives what it gave in float.

The unit is a residual block, or a bridge block where convolution meets attention (Q-HyViT, arXiv:2303.12557, section
3.2): what `edgevit.quant.regions.units` cuts. Learned are, straight through the rounding,

- the weights, in steps of their integers, and the biases (AdaQuant, Hubara et al., 2020, arXiv:2006.10518, 3.1);
- the scale of each quantized input (LSQ, Esser et al., 2020, arXiv:1902.08153);
- if asked, where a rescale of its channels costs no operator, one factor for each (QADS of HyQ, IDSL-SeoulTech/HyQ).

Meanwhile each activation stays float with probability one half, so that nothing leans on the rounding errors of these
images (QDrop, Wei et al., 2022, arXiv:2203.05740). AdaRound's relaxed rounding (arXiv:2004.10568) in place of the
straight-through one was tried: it hardens in some thousand steps, and lost in some hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.node import map_arg

from edgevit.export.rewrite import Node
from edgevit.quant.correct import MARGIN, Quantized, parted
from edgevit.quant.equalize import Choice
from edgevit.quant.layers import Layer
from edgevit.quant.ranges import dequantize_weight
from edgevit.quant.regions import Unit, units
from edgevit.quant.scheme import QuantScheme
from edgevit.quant.streams import Values, distance, power

if TYPE_CHECKING:
    from torch.fx import GraphModule

    Call = Callable[[torch.Tensor], torch.Tensor]

BATCH = 4
DROP = 0.5
RATES = {"weight": 1e-2, "bias": 1e-3, "scale": 1e-3, "channels": 1e-2}
"""Adam's, falling to 0 along half a cosine. weight: in steps of its integers; scale, channels: of the logarithm."""


class Reconstruction:
    """Follows a walk (`edgevit.quant.streams`) and reconstructs each unit where it ends."""

    def __init__(self, module: GraphModule, layers: Mapping[str, Quantized], scheme: QuantScheme) -> None:
        self.module, self.layers, self.scheme = module, layers, scheme
        self.units = {unit.sink: unit for unit in units(module)}
        self.sources = {unit.source for unit in self.units.values()}
        self.held: dict[Node, tuple[Values, Values]] = {}

    def __call__(self, node: Node, want: Values, got: Values) -> Values:
        """What `node` gives quantized: `got`, or better where a unit ends that could be learned. want: in float."""
        if node in self.units:
            unit = self.units[node]
            x_float, x = self.held.pop(unit.source)
            states = {n: self.layers[n.name] for n in unit.layers if n.name in self.layers}
            if states and reconstruct(unit, self.module, states, x_float, x, want, self.scheme):
                got = _outputs(unit, self.module, states, x)
        if node in self.sources:  # copies: what follows may write in place
            self.held[node] = [v.clone() for v in want], [v.clone() for v in got]
        return got


def reconstruct(
    unit: Unit,
    module: GraphModule,
    states: Mapping[Node, Quantized],
    x_float: Values,
    x: Values,
    want: Values,
    scheme: QuantScheme,
) -> bool:
    """Learn the unit's layers for `scheme.reconstruct` steps, in place; undone, and False, where it does not help.

    x_float, x: the unit's input in float and as quantized predecessors give it; want: its float output.
    """
    (exact, _), (rounded, judged), (known, truth) = parted(x_float), parted(x), parted(want)
    before = distance(_outputs(unit, module, states, judged), truth)
    norm = max(distance(_outputs(unit, module, states, rounded), known), 1e-12) * power(known) / len(known)
    start = {node: replace(state) for node, state in states.items()}
    generator = torch.Generator().manual_seed(0)
    inputs: dict[int, _Input] = {}
    layers = {node: _Layer(state, inputs, scheme, generator) for node, state in states.items()}
    parameters: dict[str, list[torch.Tensor]] = {"weight": [], "bias": [], "scale": [], "channels": []}
    parts: list[_Layer | _Input] = [*layers.values(), *inputs.values()]
    for part in parts:
        for name, value in part.learned().items():
            parameters[name].append(value)
    adam = torch.optim.Adam([{"params": p, "lr": RATES[n], "full": RATES[n]} for n, p in parameters.items() if p])
    with torch.enable_grad():
        for step in range(scheme.reconstruct):
            for group in adam.param_groups:
                group["lr"] = group["full"] * (0.5 + 0.5 * math.cos(math.pi * step / scheme.reconstruct))
            adam.zero_grad()
            for i in torch.randint(len(known), (BATCH,), generator=generator).tolist():
                got = _run(unit, module, _drop(exact[i], rounded[i], generator), layers)
                ((got - known[i]).square().sum() / norm / BATCH).backward()
            adam.step()
    choices = {key: value.settled() for key, value in inputs.items()}
    for layer in layers.values():
        layer.settle(choices)
    after = distance(_outputs(unit, module, states, judged), truth)
    helped = after < MARGIN * before
    for node, state in states.items():
        if not helped:
            state.integers, state.bias, state.choice = start[node].integers, start[node].bias, start[node].choice
        state.steps["reconstruct"] = before, after
    return helped


def _outputs(unit: Unit, module: GraphModule, states: Mapping[Node, Quantized], x: Values) -> Values:
    """The unit on its integers."""
    layers = {node: (lambda value, s=state: s.outputs([s.inputs(value)])[0]) for node, state in states.items()}
    return [_run(unit, module, value.clone(), layers) for value in x]


def _run(unit: Unit, module: GraphModule, x: torch.Tensor, layers: Mapping[Node, Call]) -> torch.Tensor:
    """The unit on one input, some of its layers replaced."""
    found: dict[Node, Any] = {unit.source: x}

    def value(node: Node) -> Any:
        if node not in found:  # inside the unit, or a constant that it reads
            if node.op == "get_attr":
                found[node] = attrgetter(str(node.target))(module)
            elif node in layers:
                found[node] = layers[node](value(node.args[0]))
            else:
                found[node] = node.target(*map_arg(node.args, value), **map_arg(node.kwargs, value))
        return found[node]

    for node in unit.nodes:
        value(node)
    result: torch.Tensor = found[unit.sink]
    return result


def _drop(exact: torch.Tensor, rounded: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.where(torch.rand(exact.shape, generator=generator) < DROP, exact, rounded)


class _Round(torch.autograd.Function):
    """Round half to even; the gradient passes as if nothing happened."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


_round: Callable[[torch.Tensor], torch.Tensor] = _Round.apply


class _Input:
    """A quantized input that is learned, shared by all layers that read it."""

    def __init__(self, choice: Choice, layer: Layer, qads: bool) -> None:
        self.choice = choice
        self.scale = torch.zeros(1, requires_grad=True)
        self.channels = torch.zeros(layer.inputs, requires_grad=True) if qads and choice.free else None

    def learned(self) -> dict[str, torch.Tensor]:
        return {"scale": self.scale} | ({} if self.channels is None else {"channels": self.channels})

    def __call__(self, x: torch.Tensor, layer: Layer, generator: torch.Generator) -> torch.Tensor:
        x = self.choice.equalization.apply(x, layer)
        if self.channels is not None:
            x = x / layer.channels(self.channels.exp())
        q = self.choice.quantizer
        scale = q.scale * self.scale.exp()
        return _drop(x, ((_round(x / scale) + q.zero_point).clamp(q.low, q.high) - q.zero_point) * scale, generator)

    def settled(self) -> Choice:
        quantizer, equalization = self.choice.quantizer, self.choice.equalization
        quantizer = replace(quantizer, scale=quantizer.scale * float(self.scale.detach().exp()))
        if self.channels is not None:
            factor = self.channels.detach().exp()
            scale = factor if equalization.scale is None else equalization.scale * factor
            equalization = replace(equalization, name=f"{equalization.name}, learned", scale=scale)
        return replace(self.choice, quantizer=quantizer, equalization=equalization)


class _Layer:
    """A layer whose integers and bias are learned."""

    def __init__(
        self, state: Quantized, inputs: dict[int, _Input], scheme: QuantScheme, generator: torch.Generator
    ) -> None:
        self.state, self.generator = state, generator
        self.steps = dequantize_weight(torch.ones_like(state.integers), state.scale)
        self.weight = (state.weight / self.steps).requires_grad_()
        self.bias = (torch.zeros(len(state.weight)) if state.bias is None else state.bias.clone()).requires_grad_()
        self.limit = state.limit(scheme.within(state.layer.region))
        self.input = None
        if state.choice is not None:
            self.input = inputs.setdefault(id(state.choice), _Input(state.choice, state.layer, scheme.qads))

    def learned(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    def integers(self) -> torch.Tensor:
        weight = self.weight
        if self.input is not None and self.input.channels is not None:
            weight = weight * self.state.layer.columns(self.input.channels.exp())
        return _round(weight).clamp(-self.limit, self.limit)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.input is not None:
            x = self.input(x, self.state.layer, self.generator)
        return self.state.layer(x, self.integers() * self.steps, self.bias)

    def settle(self, choices: Mapping[int, Choice]) -> None:
        state = self.state
        state.integers, state.bias = self.integers().detach().to(state.integers.dtype), self.bias.detach().clone()
        if state.choice is not None:
            state.choice = choices[id(state.choice)]

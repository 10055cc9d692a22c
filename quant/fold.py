"""Where a rescale of a layer's input costs nothing: in the norm or in the layer that makes that input.

A LayerNorm takes scale and shift into its gain and offset. A Linear or convolution takes a scale into its rows, if each
of its output channels arrives as the same channel of the input and goes nowhere else: through a ReLU, a reshape, or as
the values of an attention (V and O of one head share their channels). Which layers those are is not read off patterns
but tried: scale the channels, run what lies between, compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx.node import map_arg

from edgevit.export.rewrite import Node
from edgevit.quant.layers import CONVS, LINEAR, Group

if TYPE_CHECKING:
    from torch.fx import GraphModule

NORM = torch.ops.aten.layer_norm.default
NEAR = 60
"""How many operators may lie between a layer and the input that it makes."""
TOLERANCE = 1e-4
"""Relative; the same sums in another order differ by less than 1e-5."""


def norm(group: Group) -> bool:
    """The input is a LayerNorm that nothing else reads."""
    return group.source.target is NORM and set(group.source.users) == {layer.node for layer in group.layers}


def producers(module: GraphModule, groups: Sequence[Group], image: torch.Tensor) -> dict[Node, Node]:
    """Source of a group → the layer whose rows can take a rescale of it."""
    run = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        run.run(image)
        found = {}
        for group in groups:
            if not group.is_mixed and not norm(group):
                maker = next((node for node in _makers(group) if _scales(node, group, run.env)), None)
                if maker is not None:
                    found[group.source] = maker
    return found


def _makers(group: Group) -> list[Node]:
    """The nearest layers upstream, with as many output channels as the input has."""
    width = group.layers[0].column_peak().numel()
    found, front, seen = [], [group.source], {group.source}
    while front and len(seen) < NEAR:
        node = front.pop(0)
        if node.target is LINEAR or node.target in CONVS:
            weight = node.args[1]
            if weight.op == "get_attr" and weight.meta["val"].shape[0] == width:
                found.append(node)
            continue
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                front.append(source)
    return found


def _between(maker: Node, source: Node) -> list[Node] | None:
    """What depends on `maker`, up to `source`, in order; None if some of it does not lead there."""
    ahead, front = {maker}, [maker]
    while front:
        node = front.pop()
        if node is source:
            continue
        if node.op == "output" or len(ahead) > 4 * NEAR:
            return None
        for user in node.users:
            if user not in ahead:
                ahead.add(user)
                front.append(user)
    return [node for node in source.graph.nodes if node in ahead and node is not maker]


def _scales(maker: Node, group: Group, values: dict[Node, Any]) -> bool:
    """Whether a scale on the maker's output channels is the same scale on the group's input, whatever it is."""
    source = group.source
    if set(source.users) != {layer.node for layer in group.layers}:
        return False
    if maker is source:
        return True
    path = _between(maker, source)
    if path is None or source not in path:
        return False
    scale = torch.linspace(0.5, 2.0, group.layers[0].column_peak().numel())
    scale = scale[torch.randperm(len(scale), generator=torch.Generator().manual_seed(0))]
    on_map = maker.target in CONVS
    env = {maker: values[maker] * (scale.reshape(-1, 1, 1) if on_map else scale)}
    for node in path:
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: env.get(n, values[n]))
        env[node] = node.target(*args, **kwargs)
    want = values[source] * group.layers[0].channels(scale)
    return bool((env[source] - want).abs().max() <= TOLERANCE * want.abs().max())

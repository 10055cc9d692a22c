"""What each region of a program costs: its layers, parameters and multiply-accumulates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Interpreter

from edgevit.export.rewrite import Node, attribute
from edgevit.flops import flop_counter
from edgevit.quant.flow import Flow, operator
from edgevit.quant.layers import layer_name
from edgevit.quant.regions import REGIONS, regions, units

if TYPE_CHECKING:
    from torch.fx import GraphModule


def summary(module: GraphModule) -> dict[str, Any]:
    """Layers with region and unit, units with region, and per region its layers, parameters and share of the MACs."""
    flow, labels, cuts = Flow(module), regions(module), units(module)
    place = {node: i for i, unit in enumerate(cuts) for node in unit.nodes}
    macs = node_macs(module)
    total = max(sum(macs.get(node, 0) for node in labels), 1)
    layers = [node for node in labels if node in flow.layers]
    found: dict[str, dict[str, Any]] = {}
    for region in REGIONS:
        own = [node for node in labels if labels[node] == region]
        if own:
            found[region] = {
                "layers": sum(node in flow.layers for node in own),
                "parameters": sum(_parameters(module, node) for node in own if node in flow.layers),
                "macs_share": sum(macs.get(node, 0) for node in own) / total,
            }
    return {
        "layers": [
            {"layer": layer_name(n), "operator": operator(n), "region": labels[n], "unit": place[n]} for n in layers
        ],
        "units": [{"name": unit.name, "region": unit.region} for unit in cuts],
        "summary": found,
    }


def node_macs(module: GraphModule) -> dict[Node, int]:
    """Multiply-accumulates of each node that has any, counted in one run on an image of zeros."""
    found: dict[Node, int] = {}

    class Counted(Interpreter):
        def run_node(self, n: Node) -> Any:
            before = counter.get_total_flops()
            value = super().run_node(n)
            if counter.get_total_flops() > before:
                found[n] = (counter.get_total_flops() - before) // 2
            return value

    counter = flop_counter()
    image = Flow(module).image.meta["val"]
    with torch.enable_grad(), counter:  # as edgevit.reduce.count_macs
        Counted(module).run(torch.zeros(image.shape))
    return found


def _parameters(module: GraphModule, layer: Node) -> int:
    tensors = (attribute(module, node) for node in layer.args[1:3])
    return sum(tensor.numel() for tensor in tensors if tensor is not None)

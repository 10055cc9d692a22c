"""Which layers a scheme quantizes: all that can be, less kinds, regions and sizes it leaves out, with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgevit.quant.flow import operator
from edgevit.quant.layers import Group, Layer, find
from edgevit.quant.regions import regions
from edgevit.quant.scheme import MOVES, QuantScheme
from edgevit.stages import Refusal

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

EIGHT = 8
"""Tensor cores take int8 channels by multiples of it."""


def quantizable(module: GraphModule, scheme: QuantScheme) -> tuple[list[Group], list[Refusal]]:
    """Layers grouped by the tensor they read, in program order, and those that stay float."""
    groups, refused = find(module, scheme.layers)
    labels = regions(module) if scheme.float_regions or scheme.wide_regions else {}
    kept = []
    for group in groups:
        reasons = [_reason(layer, labels, scheme) for layer in group.layers]
        refused += [Refusal(layer.name, r) for layer, r in zip(group.layers, reasons, strict=True) if r]
        layers = tuple(
            replace(layer, region=labels.get(layer.node, ""))
            for layer, reason in zip(group.layers, reasons, strict=True)
            if not reason
        )
        if layers:
            kept.append(Group(group.source, layers))
    return kept, refused


def _reason(layer: Layer, labels: dict[Node, str], scheme: QuantScheme) -> str | None:
    """Why a layer stays float, or None."""
    if labels.get(layer.node) in scheme.float_regions:
        return f"layers of region {labels[layer.node]} stay float on this target"
    if scheme.least_channels and not large(layer, scheme.least_channels):
        return f"too small for 8 bits on this target: weight {list(layer.weight.shape)}, rows {rows(layer)}"
    return None


def rows(layer: Layer) -> int:
    """Rows of the matrix product that a layer is."""
    return int(layer.node.meta["val"].numel() // len(layer.weight))


def large(layer: Layer, least: int) -> bool:
    """Whether a layer fills int8 tensor cores (ModelOpt's rules).

    A Linear: more than one row, and `least` channels on both sides. A convolution: `least` channels on both sides; else
    one group, a square kernel, one side by eights and one side `least` (not asked of the first layer); or depthwise, by
    eights, 3x3 or larger.
    """
    out_channels, in_channels = len(layer.weight), layer.weight.shape[1] * layer.groups
    if min(out_channels, in_channels) >= least:
        return layer.is_conv or rows(layer) > 1
    if not layer.is_conv:
        return False
    kernel, by_eights = layer.weight.shape[2:], [c % EIGHT == 0 for c in (in_channels, out_channels)]
    if layer.groups == 1:
        enough = max(in_channels, out_channels) >= least or reads_image(layer.node.args[0])
        return any(by_eights) and enough and len(set(kernel)) == 1
    return layer.weight.shape[1] == 1 and by_eights[1] and min(kernel) >= 3


def reads_image(node: Node) -> bool:
    """The program's input, or a mere rearrangement of it."""
    while node.op == "call_function" and operator(node) in MOVES and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return bool(node.op == "placeholder")

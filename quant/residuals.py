"""Residual adds of convolutional stages in 8 bits, for engines that fuse them with a convolution.

    x -> conv -> add <- x    becomes    x -> conv -> add <- Q/DQ <- x

An input of an add becomes a node of its own first, so that it is observed, chosen and written like any other value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgevit.export.rewrite import Node, call
from edgevit.quant.flow import Flow, shape
from edgevit.quant.regions import CONV, regions
from edgevit.quant.scheme import QuantScheme

if TYPE_CHECKING:
    from torch.fx import GraphModule

ATEN = torch.ops.aten
SKIP = "residual input"
"""Key in the metadata of an input that became a node."""
DONE = "quantized residual"
"""Key in the metadata of an add with such inputs."""


def split(module: GraphModule, scheme: QuantScheme) -> None:
    """Give the quantized inputs of residual adds nodes of their own."""
    if scheme.residuals == "none":
        return
    flow, labels = Flow(module), regions(module)
    for add in [node for node in flow.nodes if labels[node] == CONV and _is_residual(node, flow)]:
        for value in [_skip(add, flow)] if scheme.residuals == "skip" else list(add.args[:2]):
            alias = call(module, add, ATEN.alias.default, value)
            alias.meta[SKIP] = True
            add.args = tuple(alias if argument is value else argument for argument in add.args)
        add.target = ATEN.add.Tensor  # in place it would write into the copy
        add.meta[DONE] = True


def inputs(module: GraphModule) -> list[Node]:
    """The nodes that `split` made."""
    return [node for node in module.graph.nodes if SKIP in node.meta]


def join(module: GraphModule) -> None:
    """Take the nodes out again; what quantizes them stays."""
    for node in inputs(module):
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)


def _is_residual(node: Node, flow: Flow) -> bool:
    """A plain sum of two different maps of one size; written in place, none may read its first operand behind it."""
    values = flow.operands(node)
    if node.target not in (ATEN.add.Tensor, ATEN.add_.Tensor) or len(set(values)) != 2 or node.kwargs:
        return False
    place = {n: i for i, n in enumerate(flow.nodes)}
    read_later = any(place.get(user, len(place)) > place[node] for user in node.args[0].users)
    return len({shape(n) for n in (*values, node)}) == 1 and not (node.target is ATEN.add_.Tensor and read_later)


def _skip(add: Node, flow: Flow) -> Node:
    """The operand with fewer layers of its own; of two equal ones the second: the first is the fused one."""
    layers = flow.bits(flow.layers)
    a, b = flow.operands(add)
    own = [(flow.above[n] & ~flow.above[other] & layers).bit_count() for n, other in ((a, b), (b, a))]
    return a if own[0] < own[1] else b

"""Quotients of two activations and what they are computed from: linear attention, averages of merged tokens.

Numerator and divisor are sums over tokens, which float16 may not hold although it holds the quotient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgevit.quant.flow import CONTRACTIONS, LAYOUT, Flow, operator
from edgevit.quant.structure import Structure

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

FOLLOWS = {"add", "sub", "mul", "div", "neg", "sqrt", "rsqrt", "reciprocal", "log", "exp", "clamp", "clamp_min", "abs"}
"""Arithmetic on single numbers."""
SUMS = CONTRACTIONS | {"sum", "mean"}
ARITHMETIC = FOLLOWS | SUMS | LAYOUT | {"relu"}
"""What a quotient is followed back through."""


def quotients(flow: Flow) -> Iterator[set[Node]]:
    """For each quotient the nodes that compute it, back to layers and residual adds; moves are not among them."""
    parts, layers = Structure(flow), flow.bits(flow.layers)

    def ends(node: Node) -> bool:
        residual = node in parts.skips and parts.skips[node].branch & layers
        return bool(residual) or operator(node) not in ARITHMETIC

    for node in flow.nodes:
        if operator(node) == "div" and len(flow.operands(node)) == 2:
            yield {n for n in flow.back([node], ends) if not ends(n) and operator(n) not in LAYOUT}


def quotients_of_sums(module: GraphModule) -> set[str]:
    """Names of the nodes that compute quotients with a sum or a product of activations in them."""
    return {n.name for found in quotients(Flow(module)) if any(operator(n) in SUMS for n in found) for n in found}

"""What decides about tokens in a traced program: what must not be rounded where the rest runs in 16 bits.

A rounded similarity picks another token wherever two lie nearer than a rounding step, in bf16 2**-8 of a cosine near 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.quant.flow import LAYOUT, Flow, is_integer, operator
from edgevit.quant.structure import Structure

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def deciding(module: GraphModule) -> set[str]:
    """Names of the float nodes that integers and booleans are computed from, back to the nearest layers and residuals.

    Only nodes that compute, and moves behind them: a float32 copy of a rounded tensor would only cost. To quantize a
    tensor is no decision.
    """
    flow = Flow(module)
    parts = Structure(flow)
    picks = {n for n in flow.nodes if _picks(n) and any(map(is_float, flow.inputs[n]))}
    read = [i for n in picks for i in flow.inputs[n] if is_float(i)]
    above = {n for n in flow.back(read, parts.ends) if not parts.ends(n)}
    found: set[Node] = set()
    for node in flow.nodes:
        if node in picks or (node in above and (operator(node) not in LAYOUT or found.intersection(flow.inputs[node]))):
            found.add(node)
    return {node.name for node in found}


def _picks(node: Node) -> bool:
    return not is_float(node) and not operator(node).startswith("quantize")


def is_float(node: Node) -> bool:
    """Whether what a node gives decides nothing."""
    return not is_integer(node.meta["val"])

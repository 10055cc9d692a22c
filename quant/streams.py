"""Two streams through one program: what the float layers compute, and what the quantized ones do, on a few images.

Corrections need both: a layer's input as its quantized predecessors leave it, and the output it had in float. Where
the program picks tokens, both pick those of the float one: rows of two different tokens have nothing to correct, and
what is fitted to them shrinks the layer towards its mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.node import map_arg

from edgevit.export.rewrite import Node
from edgevit.quant.flow import is_integer

if TYPE_CHECKING:
    from torch.fx import GraphModule

Values = list[torch.Tensor]
"""One tensor per calibration batch."""
Visit = Callable[[Node, Values, Values, Values], Values]
"""(node, its float inputs, its quantized inputs, its float outputs) → its quantized outputs."""
After = Callable[[Node, Values, Values], Values]
"""(node, its float outputs, its quantized outputs) → its quantized outputs."""


def walk(
    module: GraphModule, images: Sequence[torch.Tensor], visit: Visit, wanted: set[Node], after: After | None = None
) -> tuple[Values, Values]:
    """Run every node on every batch of images, both ways; `visit` computes the wanted ones in the quantized stream.

    after: sees what each node gives, and may replace it in the quantized stream.
    Returns the outputs of the float and the quantized program. Memory: what is alive at one node, for all batches.
    """
    float_env: dict[Node, Any] = {}
    quant_env: dict[Node, Any] = {}
    last = {source: node for node in module.graph.nodes for source in node.all_input_nodes}

    def run(node: Node, env: dict[Node, Any]) -> list[Any]:
        return [_run(node, env, index) for index in range(len(images))]

    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "output":
                source = node.all_input_nodes[0]
                return float_env[source], quant_env[source]
            if node.op == "placeholder":
                float_env[node] = quant_env[node] = list(images)
            elif node.op == "get_attr":
                float_env[node] = quant_env[node] = attrgetter(str(node.target))(module)
            elif node.op == "call_function":
                float_env[node] = run(node, float_env)
                if node in wanted:
                    source = node.args[0]
                    quant_env[node] = visit(node, float_env[source], quant_env[source], float_env[node])
                elif is_integer(float_env[node][0]) or all(float_env[n] is quant_env[n] for n in node.all_input_nodes):
                    quant_env[node] = float_env[node]
                else:
                    quant_env[node] = run(node, quant_env)
            if after is not None and node.op in ("placeholder", "call_function"):
                quant_env[node] = after(node, float_env[node], quant_env[node])
            for source in node.all_input_nodes:
                if last[source] is node:
                    del float_env[source], quant_env[source]
    raise AssertionError("a program ends in its output")


def _run(node: Node, env: dict[Node, Any], index: int) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: env[n][index] if isinstance(env[n], list) else env[n])
    return node.target(*args, **kwargs)


def power(values: Values) -> float:
    """Sum of squares."""
    return sum(float(v.square().sum()) for v in values)


def distance(got: Values, want: Values) -> float:
    """Squared error over the power of what is wanted."""
    return power([g - w for g, w in zip(got, want, strict=True)]) / max(power(want), 1e-30)

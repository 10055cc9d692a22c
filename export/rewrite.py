"""Exact float rewrites of a program: one pass per file, a table that can be read, a runner that proves each.

A pass is a function `GraphModule -> int` (how often it matched). Each keeps the function the program computes; the
runner compares outputs before and after and refuses a pass that changes them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from edgevit.distance import relative_error
from edgevit.errors import GraphError
from edgevit.names import named
from edgevit.stages import Graph, InputSpec

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

Node = Any
"""A torch.fx.Node. Its `args` are typed as a union that no operation fits; a pass checks the operator instead."""

PASSES = {
    "fold_batch_norm": "edgevit.export.fold_batch_norm:fold_batch_norm",  # first: the others look at bare layers
    "fold_layer_scale": "edgevit.export.fold_layer_scale:fold_layer_scale",  # after the norm between it and its layer
    "patches_as_linear": "edgevit.export.patches_as_linear:patches_as_linear",
    "split_qkv": "edgevit.export.split_qkv:split_qkv",  # before the scale: it frees the query's own Linear
    "attention_by_head": "edgevit.export.attention_by_head:attention_by_head",  # after the split: it reads the parts
    "fold_attention_scale": "edgevit.export.fold_attention_scale:fold_attention_scale",
    "drop_unread_tokens": "edgevit.export.drop_unread_tokens:drop_unread_tokens",  # after the split: q alone shrinks
    "fold_norm_affine": "edgevit.export.fold_norm_affine:fold_norm_affine",  # it sees the final Linears
    "keep_reduced_axes": "edgevit.export.keep_reduced_axes:keep_reduced_axes",
    "drop_batch_axis": "edgevit.export.drop_batch_axis:drop_batch_axis",  # last: the others know the axis
}

TOLERANCE = 1e-5  # relative to the largest output: float32 sums in another order
NOISE = 4  # where float32 itself loses more on a program: so often the distance to the same program in float64


def rewrite(module: GraphModule, inputs: InputSpec, names: Sequence[str]) -> tuple[str, ...]:
    """Run the named passes on an unlifted program, in order and in place; return those that matched."""
    import torch

    images = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    done = []
    with torch.no_grad():
        before = module(images)
        for name in names:
            run: Callable[[GraphModule], int] = named(PASSES[name])
            if run(module):
                sweep(module)
                _prove(name, before, module, images)
                done.append(name)
    return tuple(done)


def rewritten(graph: Graph, names: Sequence[str]) -> Graph:
    """The program behind the named passes; the same object when none matched."""
    from edgevit.export.trace import export_program

    module = graph.program.module()
    done = rewrite(module, graph.inputs, names)
    return Graph(export_program(module, graph.inputs), graph.inputs, (*graph.passes, *done)) if done else graph


def sweep(module: GraphModule) -> None:
    """Remove what nothing reads, tensors too: float weights behind integers, norms that were folded.

    Attention and dropout count as random to torch; in evaluation they are not.
    """
    module.graph.eliminate_dead_code(is_impure_node=lambda node: node.is_impure(impure_random=False))
    module.recompile()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name not in read]:
        holder, _, last = name.rpartition(".")
        delattr(module.get_submodule(holder), last)


def _prove(name: str, before: torch.Tensor, module: GraphModule, images: torch.Tensor) -> None:
    after = module(images)
    error = relative_error(after, before)
    if error <= TOLERANCE:
        return
    limit = max(TOLERANCE, NOISE * _lost(module, images, after))
    if not error <= limit:
        raise GraphError(
            f"pass {name} changed the outputs by {error:.1e} (limit {limit:.2g}); this is a bug in the pass"
        )


def _lost(module: GraphModule, images: torch.Tensor, outputs: torch.Tensor) -> float:
    """What float32 loses on this program; 0 where it cannot run in float64, because it names its types."""
    try:
        return relative_error(outputs, copy.deepcopy(module).double()(images.double()))
    except RuntimeError:
        return 0.0


def attribute(module: GraphModule, node: Any) -> torch.Tensor | None:
    """The constant tensor behind a `get_attr` node, or behind several laid end to end; None for anything else.

    BEiT and EVA keep the biases of queries and values apart and join them in every forward.
    """
    import torch

    if getattr(node, "op", None) == "call_function" and node.target is torch.ops.aten.cat.default:
        parts = [attribute(module, part) for part in node.args[0]]
        known = [part for part in parts if part is not None]
        return torch.cat(known, *node.args[1:]) if len(known) == len(parts) else None
    if getattr(node, "op", None) != "get_attr":
        return None
    value = attrgetter(str(node.target))(module)
    return value.detach() if hasattr(value, "detach") else None


def constant(module: GraphModule, like: Node, name: str, value: torch.Tensor) -> Node:
    """Add a tensor to the program, as a `get_attr` node in front of `like`."""
    unique = name
    while hasattr(module, unique):
        unique += "_"
    module.register_buffer(unique, value.contiguous())
    with module.graph.inserting_before(like):
        node = module.graph.get_attr(unique)
    node.meta["val"] = _fake_mode(module).from_tensor(value, static_shapes=True)
    return node


def call(module: GraphModule, before: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """Insert an operator in front of `before`, remembered as part of the same layer, its shape worked out."""
    from torch.fx.node import map_arg

    with module.graph.inserting_before(before):
        node = module.graph.call_function(target, args, kwargs)
    node.meta["nn_module_stack"] = before.meta.get("nn_module_stack", {})
    values = [map_arg(a, lambda n: n.meta["val"]) for a in args]
    with _fake_mode(module):
        node.meta["val"] = target(*values, **kwargs)
    return node


def _fake_mode(module: GraphModule) -> Any:
    """The mode that the trace's shapes live in."""
    return next(n.meta["val"].fake_mode for n in module.graph.nodes if hasattr(n.meta.get("val"), "fake_mode"))


def single_user(node: Node) -> Node | None:
    """The one user of a node, or None."""
    return next(iter(node.users)) if len(node.users) == 1 else None

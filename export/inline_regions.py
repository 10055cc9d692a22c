"""Regions that a trace keeps as programs of their own become plain operators again."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


def inline_regions(program: ExportedProgram) -> None:
    """`with torch.autocast(..., enabled=False): ...`, as in MIT's EfficientViT, is its body: nothing is cast in export.

    Neither quantizer nor converter looks into the nested program. A region that does cast stays as it is.
    """
    import torch

    found = [
        node
        for node in program.graph.nodes
        if node.target is torch.ops.higher_order.wrap_with_autocast and node.args[2] is False  # device, dtype, enabled
    ]
    for node in found:
        _inline(program, node)
    if found:
        program.graph_module.recompile()


def _inline(program: ExportedProgram, region: Node) -> None:
    """Copy the body in front of the region's node, and let its readers read the copies."""
    from torch.export.graph_signature import TensorArgument
    from torch.fx.node import map_arg

    name = str(region.args[4].target)  # type: ignore[union-attr]
    body = getattr(program.graph_module, name).graph
    copies = dict(zip((n for n in body.nodes if n.op == "placeholder"), region.args[5:], strict=True))
    with program.graph.inserting_before(region):
        for node in body.nodes:
            if node.op not in ("placeholder", "output"):
                copies[node] = program.graph.node_copy(node, copies.__getitem__)
    results = map_arg(body.output_node().args[0], copies.__getitem__)
    for reader in list(region.users):
        assert reader.target is operator.getitem
        reader.replace_all_uses_with(results[reader.args[1]])
        program.graph.erase_node(reader)
    program.graph.erase_node(region)
    for spec, value in zip(program.graph_signature.output_specs, program.graph.output_node().args[0], strict=True):
        spec.arg = TensorArgument(name=value.name)

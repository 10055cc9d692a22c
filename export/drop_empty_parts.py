"""Parts of a cat that hold nothing go: the protected tokens of a reduced model that has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from edgevit.export.rewrite import Node


def drop_empty_parts(module: GraphModule) -> int:
    """cat([[B, 0], [B, N]], 1) -> [B, N]."""
    import torch

    matched = 0
    for node in [n for n in module.graph.nodes if n.target is torch.ops.aten.cat.default]:
        parts = [part for part in node.args[0] if not is_empty(part)]
        if parts and len(parts) < len(node.args[0]):
            node.args = (parts, *node.args[1:])
            matched += 1
            if len(parts) == 1:
                node.replace_all_uses_with(parts[0])
    return matched


def is_empty(node: Node) -> bool:
    """Whether a node is one tensor of no elements."""
    return getattr(node.meta.get("val"), "shape", None) is not None and 0 in node.meta["val"].shape

"""A softmax of four dimensions becomes one of rows: XNNPACK takes a convolution's output for one with channels last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.export.rewrite import call

if TYPE_CHECKING:
    from torch.fx import GraphModule


def softmax_by_row(module: GraphModule) -> int:
    """softmax([A, B, C, D], -1) -> reshape(softmax(reshape([A * B, C, D]), -1)).

    Between convolutions (talking heads) XNNPACK keeps `[A, C, D, B]`, and its softmax sums over B.
    """
    import torch

    aten, matched = torch.ops.aten, 0
    for node in list(module.graph.nodes):
        if node.target is not aten.softmax.int or node.args[1] not in (-1, 3) or node.meta["val"].ndim != 4:
            continue
        x, _, *kind = node.args
        a, b, *row = shape = list(x.meta["val"].shape)
        rows = call(module, node, aten.reshape.default, x, [a * b, *row])
        shares = call(module, node, aten.softmax.int, rows, -1, *kind, **node.kwargs)
        node.replace_all_uses_with(call(module, node, aten.reshape.default, shares, shape))
        matched += 1
    return matched

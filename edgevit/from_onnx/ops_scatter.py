"""Scatters and boolean selection as comparisons, TopK and matrix products: every shape is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgevit.from_onnx.ops_math import Attributes
from edgevit.from_onnx.ops_shape import flat_places, whole
from edgevit.tokens.lowering import ascending

MOST_COMPARISONS = 1 << 26  # of one node, each a byte


def kept(attributes: Attributes, margin: Tensor) -> Tensor:
    """NonZero of a mask of one image: the `count` largest margins, `[rank, count]`, places ascending.

    margin: how far a mask `[1, N]`, `[N]`, `[1, N, 1]` is above its threshold.
    """
    count, sizes = attributes["count"], [int(s) for s in margin.shape]
    total = math.prod(sizes)
    if max(sizes) != total:
        raise ValueError(f"its mask {sizes} is not of one image, whose tokens lie along one axis")
    index = ascending(margin.reshape(1, total).topk(count).indices).squeeze(0)
    axis = sizes.index(total)
    return torch.stack([index if i == axis else torch.zeros_like(index) for i in range(len(sizes))])


def scatter_rows(attributes: Attributes, data: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """`data` `[B, N, C]` with rows `updates` `[B, r, C]` at `index` `[B, r, 1]`, put or added."""
    hits = _hits(index.squeeze(-1), int(data.shape[1]))
    return _joined(attributes, data, hits.transpose(1, 2) @ updates.to(hits.dtype), hits.sum(1).unsqueeze(-1))


def scatter_elements(attributes: Attributes, data: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """One element for each index along `axis`, put or added."""
    axis = attributes.get("axis", 0) % data.ndim
    flat, places, values = (x.movedim(axis, -1) for x in (data, index, updates))
    if flat.shape[:-1] != places.shape[:-1]:
        raise ValueError(f"indices {list(index.shape)} cover a part of {list(data.shape)}; this is not imported")
    hits = _hits(places, int(flat.shape[-1]))
    placed = (values.to(hits.dtype).unsqueeze(-2) @ hits).squeeze(-2)
    return _joined(attributes, flat, placed, hits.sum(-2)).movedim(-1, axis)


def scatter_nd(attributes: Attributes, data: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """Slices of `data` at index tuples `[..., depth]`, put or added."""
    depth = int(index.shape[-1])
    sizes = [int(s) for s in data.shape[:depth]]
    hits = _hits(flat_places(index, sizes).reshape(-1), math.prod(sizes))  # [K, rows]
    rows = data.reshape(math.prod(sizes), -1)
    placed = hits.transpose(0, 1) @ updates.to(hits.dtype).reshape(hits.shape[0], -1)
    return _joined(attributes, rows, placed, hits.sum(0).unsqueeze(-1)).reshape(data.shape)


def _hits(index: Tensor, count: int) -> Tensor:
    """`[..., r]` → `[..., r, count]` of 0 and 1."""
    index = whole(index, count)
    if math.prod(index.shape) * count > MOST_COMPARISONS:
        raise ValueError(f"{list(index.shape)} indices into {count} places are too many to compare one by one")
    return (index.unsqueeze(-1) == torch.arange(count, device=index.device)).to(torch.float32)


def _joined(attributes: Attributes, data: Tensor, placed: Tensor, hits: Tensor) -> Tensor:
    """What was placed, over or in addition to what was there. hits: how often each place was."""
    reduction = attributes.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise ValueError(f"reduction {reduction} is not imported; none and add are")
    whole_data = data.to(placed.dtype)
    result = whole_data + placed if reduction == "add" else torch.where(hits > 0, placed, whole_data)
    return result > 0.5 if data.dtype == torch.bool else result.to(data.dtype)

"""Static primitives: how "take these rows" becomes operators.

Both lowerings give the same values; which one a target uses is data of that target.

gather  one Gather over whole rows (memory copies of C values each; not GatherElements, which moves one value at a time)
matmul  a 0/1 selection matrix times the tokens, for accelerators that a gather would leave
"""

from __future__ import annotations

from typing import Literal

import torch

Lowering = Literal["gather", "matmul"]
LOWERINGS: tuple[Lowering, ...] = ("gather", "matmul")


def one_hot(index: torch.Tensor, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """`[B, k]` int → `[B, k, classes]` of 0 and 1, by comparison with a constant (no scatter)."""
    return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).to(dtype)


def take_rows(x: torch.Tensor, index: torch.Tensor, lowering: Lowering) -> torch.Tensor:
    """Rows of `x` `[B, N, C]` at `index` `[B, k]` → `[B, k, C]`."""
    if lowering == "matmul":
        return one_hot(index, x.shape[1], x.dtype) @ x
    batch, count, width = x.shape
    if batch == 1:
        return x.index_select(1, index.squeeze(0))
    flat = x.reshape(batch * count, width).index_select(0, _flat(index, count))
    return flat.reshape(batch, index.shape[1], width)


def take(values: torch.Tensor, index: torch.Tensor, lowering: Lowering) -> torch.Tensor:
    """Entries of `values` `[B, N]` at `index` `[B, k]` → `[B, k]`; integers stay exact up to 2**24."""
    batch, count = values.shape
    if lowering == "matmul":
        floats = values if values.is_floating_point() else values.to(torch.float32)
        return take_rows(floats.unsqueeze(-1), index, lowering).squeeze(-1).to(values.dtype)
    if batch == 1:
        return values.index_select(1, index.squeeze(0))
    return values.reshape(-1).index_select(0, _flat(index, count)).reshape(batch, index.shape[1])


def put(index: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """`out[b, index[b, i]] = values[b, i]`, 0 elsewhere: `[B, k]`, `[B, k]` → `[B, count]`, without a scatter.

    Indices differ from one another. Integers go through float32, which is exact up to 2**24.
    """
    exact = values.to(torch.float32) if not values.is_floating_point() else values
    out = (exact.unsqueeze(1) @ one_hot(index, count, exact.dtype)).squeeze(1)
    return out.to(values.dtype)


def table_rows(table: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
    """Rows of a constant `[N0, d]` for tokens that stand at `place` `[B, N]` → `[B, N, d]`; all rows for None."""
    if place is None:
        return table.unsqueeze(0)
    return table.index_select(0, place.reshape(-1)).reshape(*place.shape, table.shape[1])


def table_pairs(table: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
    """Entries of a constant `[H, N0, N0]` for all pairs of tokens at `place` `[B, N]` → `[B, H, N, N]`."""
    if place is None:
        return table.unsqueeze(0)
    heads, count, _ = table.shape
    batch, left = place.shape
    rows = table.index_select(1, place.reshape(-1)).reshape(heads, batch, left, count)
    columns = rows.permute(1, 3, 0, 2).reshape(batch, count, heads * left)
    return take_rows(columns, place, "gather").reshape(batch, left, heads, left).permute(0, 2, 3, 1)


def ascending(index: torch.Tensor) -> torch.Tensor:
    """Sort indices `[B, k]` from small to large with TopK, which every backend has (Sort is not one of them)."""
    return index.topk(index.shape[1], dim=-1, largest=False).values


def _flat(index: torch.Tensor, count: int) -> torch.Tensor:
    """Indices `[B, k]` into rows of a batch laid end to end, `count` rows an image."""
    offsets = torch.arange(index.shape[0], device=index.device).mul(count).unsqueeze(-1)
    return (index + offsets).reshape(-1)

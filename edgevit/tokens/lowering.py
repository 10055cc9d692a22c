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
        return x[0].index_select(0, index[0]).unsqueeze(0)
    offsets = torch.arange(batch, device=index.device).mul(count).unsqueeze(-1)
    flat = x.reshape(batch * count, width).index_select(0, (index + offsets).reshape(-1))
    return flat.reshape(batch, index.shape[1], width)


def ascending(index: torch.Tensor) -> torch.Tensor:
    """Sort indices `[B, k]` from small to large with TopK, which every backend has (Sort is not one of them).

    float32 holds integers up to 2**24 exactly; there are never so many tokens.
    """
    return index.to(torch.float32).neg().topk(index.shape[1], dim=-1).values.neg().to(torch.int64)

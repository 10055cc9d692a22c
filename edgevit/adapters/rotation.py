"""Rotary positions as a table with one row per token: y = x · cos + swap(x) · sin."""

from __future__ import annotations

import torch
from torch import nn

from edgevit.tokens.lowering import table_rows


class Rotation(nn.Module):
    """Turns queries and keys by the positions of their tokens.

    swap exchanges the two members of each rotated pair; the minus that one of them takes is in the table. Tokens with
    sin 0 and cos 1 stay as they are, to the bit.
    """

    def __init__(self, sin: torch.Tensor, cos: torch.Tensor, half: bool) -> None:
        """sin, cos: `[H or 1, N, d]`. half: pairs are d/2 apart, else neighbours."""
        super().__init__()
        table = torch.cat([sin, cos], dim=-1).transpose(0, 1)  # [N, H, 2 d]
        self.heads, self.halves = sin.shape[0], half
        self.table: torch.Tensor
        self.register_buffer("table", table.flatten(1), persistent=False)

    def forward(self, place: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Sin and cos for tokens at `place` `[B, N]`, or for all: `[B or 1, H or 1, N, d]` each."""
        rows = table_rows(self.table, place)
        batch, count, _ = rows.shape
        sin, cos = rows.reshape(batch, count, self.heads, -1).transpose(1, 2).chunk(2, dim=-1)
        return sin, cos

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        """Rotate `[B, H, N, d]`; computed in the table's precision, returned in x's."""
        return (x * cos + swap(x, self.halves) * sin).to(x.dtype)


def swap(x: torch.Tensor, half: bool) -> torch.Tensor:
    """The two members of each pair exchanged, `[..., d]`."""
    if half:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([second, first], dim=-1)
    return torch.stack([x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)

"""Plans that several methods share: what to do with the tokens once it is decided. All trace to static operators."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgevit.tokens.lowering import Lowering, one_hot, put, take, take_rows


@dataclass(frozen=True)
class Grouping:
    """Output token j is input token `order[:, j]`, joined by the tokens of `merged` whose `target` is j.

    order: `[B, N']` int64. merged: `[B, R]` int64, `target`: `[B, R]` int64 slots. count: N. Tokens in neither are
    pruned.
    """

    order: torch.Tensor
    merged: torch.Tensor
    target: torch.Tensor
    count: int
    lowering: Lowering

    def source(self) -> torch.Tensor:
        """A group stands where its own token stood."""
        return self.order

    def slots(self) -> torch.Tensor:
        """`[B, N]`; pruned tokens say 0."""
        index = torch.cat([self.order, self.merged], dim=1)
        own = torch.arange(self.order.shape[1]).expand(self.order.shape[0], -1)
        return put(index, torch.cat([own, self.target], dim=1), self.count)

    def dropped(self) -> torch.Tensor:
        """Tokens in no group."""
        index = torch.cat([self.order, self.merged], dim=1)
        return put(index, torch.ones(index.shape), self.count) == 0

    def restore(self, y: torch.Tensor) -> torch.Tensor | None:
        """Every token takes its group's row."""
        return None

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of `values` `[B, R]` of the merged tokens, per slot: `[B, N']`."""
        spread = one_hot(self.target, self.order.shape[1], values.dtype)  # [B, R, N']
        return (values.unsqueeze(1) @ spread).squeeze(1)


@dataclass(frozen=True)
class Merge(Grouping):
    """Each group becomes the weighted mean of its tokens; sizes add up.

    weight: `[B, N]`, or None for the sizes. gain: `[B, R]`, a factor on the size a merged token brings, or None for 1.
    """

    weight: torch.Tensor | None = None
    gain: torch.Tensor | None = None

    def apply(self, x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """y_j = x_j + Σ_i (w_i / Σ w) (x_i − x_j): the groups' own rows are copied, only what joins is computed."""
        weight = size if self.weight is None else self.weight  # its own dtype: only shares need fit the stream's
        spread, total = self._joined(weight, x.dtype if weight is None else weight.dtype)
        share = (spread / total.unsqueeze(2)).to(x.dtype)
        rows = take_rows(x, self.order, self.lowering)
        differences = take_rows(x, self.merged, self.lowering) - take_rows(rows, self.target, self.lowering)
        out = rows + share @ differences
        if self.weight is not None or self.gain is not None:
            sizes = x.new_ones(x.shape[:2]) if size is None else size
            total = self._joined(sizes, sizes.dtype, self.gain)[1]
        return out, total

    def _joined(
        self, weight: torch.Tensor | None, dtype: torch.dtype, gain: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each merged token brings to each slot `[B, N', R]`, and the slots' sums `[B, N']`, own included.

        Sums run along the last axis: over the one before it they can take longer than the block's other steps together.
        """
        slots = torch.arange(self.order.shape[1], device=self.target.device).unsqueeze(-1)
        spread = (slots == self.target.unsqueeze(1)).to(dtype)
        if weight is None:
            return spread, spread.sum(dim=2) + 1
        brought = take(weight, self.merged, self.lowering)
        if gain is not None:
            brought = brought * gain.to(dtype)
        spread = spread * brought.unsqueeze(1)
        return spread, spread.sum(dim=2) + take(weight, self.order, self.lowering)


@dataclass(frozen=True)
class Prune(Grouping):
    """Keep the rows of `order`, forget the others. `merged` and `target` are empty."""

    def apply(self, x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One gather."""
        rows = take_rows(x, self.order, self.lowering)
        return rows, None if size is None else take(size, self.order, self.lowering)


def prune(order: torch.Tensor, count: int, lowering: Lowering) -> Prune:
    """Keep the tokens `order` `[B, N']` of `count`."""
    nothing = order.new_zeros((order.shape[0], 0))
    return Prune(order, nothing, nothing, count, lowering)


def with_prefix(prefix: int, patches: torch.Tensor) -> torch.Tensor:
    """Put the prefix tokens in front of patch indices: `[B, K]`, counted from 0 behind the prefix → `[B, P + K]`."""
    first = torch.arange(prefix, device=patches.device).expand(patches.shape[0], -1)
    return torch.cat([first, patches + prefix], dim=1)

"""What a reduction method must offer, and the plan it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    import torch

    from edgevit.stages import Tap, VitModel
    from edgevit.tokens.lowering import Lowering


class Plan(Protocol):
    """One decision about one block's tokens: made once from the tap, applied to any tensor."""

    def apply(self, x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[B, N, C]`, sizes `[B, N]` or None (all one) → `[B, N', C]`, `[B, N']` or None."""

    def slots(self) -> torch.Tensor:
        """`[B, N]` int64: the output slot each input token went to."""

    def dropped(self) -> torch.Tensor:
        """`[B, N]` bool: true for a token that is pruned into a fused one rather than kept or merged."""


class Method(Protocol):
    """A reduction method: counting on Python ints, deciding on tensors.

    keys: schedule keys that hold one amount per block, with their meaning (exactly one is given).
    options: other schedule keys with their allowed values, the default first.
    """

    keys: ClassVar[Mapping[str, str]]
    options: ClassVar[Mapping[str, tuple[str, ...]]]

    @staticmethod
    def check_model(vit: VitModel) -> str | None:
        """Why this method cannot run on a model, or None."""

    @staticmethod
    def default_blocks(depth: int) -> tuple[int, ...]:
        """Blocks (from 1) where a schedule without `@` reduces."""

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """Why an amount is out of range, or None."""

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """Tokens behind a block that saw `tokens`, of which `prefix` are protected."""

    @staticmethod
    def budget_grid(tokens: int) -> tuple[str, tuple[float, ...]]:
        """For `flops=`: the key and its amounts, from least to most reduction."""

    @staticmethod
    def plan(
        tap: Tap,
        size: torch.Tensor | None,
        prefix: int,
        tokens_out: int,
        options: Mapping[str, str],
        lowering: Lowering,
    ) -> Plan:
        """Decide which tokens stay and which merge, for one block."""

    @staticmethod
    def tracks_size(options: Mapping[str, str]) -> bool:
        """Whether later attention adds log(size) to its logits (proportional attention)."""

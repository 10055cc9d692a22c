"""EViT: keep the tokens the class token attends to, fuse the rest.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", ICLR 2022
(arXiv:2202.07800), section 3.2; written from the formulas.

    a_j = mean over heads of softmax(q_cls · kᵀ · scale)_j    for patches j of the same block
    keep the k = ceil(keep · (N − P)) patches with the largest a, in that order
    f = Σ over the others of a_j x_j                          (raw weights: not divided by their sum)
    behind the block: prefix, kept, f

All P prefix tokens are protected (the paper protects the class token alone; a distillation or register token must
survive too). f competes as an ordinary token in later blocks. Sizes are not tracked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from edgevit.tokens.lowering import Lowering, take_rows

if TYPE_CHECKING:
    from edgevit.stages import Tap, VitModel


def class_attention(tap: Tap, prefix: int) -> torch.Tensor:
    """The class token's attention to the patches, mean over heads: `[B, N - P]`.

    One row of the softmax, exact, at H·N·d multiplications: the fused attention kernel keeps the rest. float32.
    """
    query, keys = tap.q[:, :, :1].to(torch.float32), tap.k.to(torch.float32)
    logits = (query @ keys.transpose(2, 3)) * tap.scale  # [B, H, 1, N]
    if tap.log_size is not None:
        logits = logits + tap.log_size[:, None, None, :]
    return logits.softmax(dim=-1)[:, :, 0, prefix:].mean(dim=1)


@dataclass(frozen=True)
class Selection:
    """An EViT decision: patches ordered by attention `[B, N - P]`, the first `keep` stay, the rest fuse."""

    prefix: int
    keep: int
    order: torch.Tensor
    attention: torch.Tensor  # [B, N - P], in the same order
    lowering: Lowering

    def apply(self, x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One gather of all patches in order, one small product for the fused token."""
        patches = take_rows(x[:, self.prefix :], self.order, self.lowering)
        weights = self.attention[:, self.keep :].to(x.dtype).unsqueeze(1)  # [B, 1, rest]
        fused = weights @ patches[:, self.keep :]
        return torch.cat([x[:, : self.prefix], patches[:, : self.keep], fused], dim=1), None

    def slots(self) -> torch.Tensor:
        """`[B, N]` int64; every fused patch goes to the last slot. Eager only."""
        batch, count = self.order.shape
        rank = torch.arange(count).clamp(max=self.keep).expand(batch, -1) + self.prefix
        patches = torch.empty(batch, count, dtype=torch.int64).scatter_(1, self.order, rank)
        prefix = torch.arange(self.prefix).expand(batch, -1)
        return torch.cat([prefix, patches], dim=1)

    def dropped(self) -> torch.Tensor:
        """The fused patches."""
        return self.slots() == self.prefix + self.keep


class EViT:
    """`evit:keep=0.7@4,7,10`: keep 70 % of the patches at blocks 4, 7 and 10."""

    keys: ClassVar[Mapping[str, str]] = {"keep": "share of the patches that stay, above 0 and at most 1"}
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @staticmethod
    def check_model(vit: VitModel) -> str | None:
        """It reads a class token's attention, and its fused token is no patch to pool over."""
        if not vit.class_token:
            return "evit scores patches by the class token's attention, and this model has no class token; use tome"
        if vit.pooling != "token":
            return (
                f"evit leaves one fused token among the patches, and this model pools over patches "
                f"({vit.pooling}), which would count it as one; use tome"
            )
        return None

    @staticmethod
    def default_blocks(depth: int) -> tuple[int, ...]:
        """Behind each quarter of the depth but the last: 4, 7 and 10 of 12, as in the paper.

        >>> EViT.default_blocks(12)
        (4, 7, 10)
        """
        return tuple(sorted({depth * quarter // 4 + 1 for quarter in (1, 2, 3)}))

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """A share, not a percentage."""
        if not 0 < value <= 1:
            return f"keep={value:g} must be above 0 and at most 1 (0.7 keeps 70 %)"
        return None

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """Prefix + kept + the fused token; no step where nothing, or only one token, would be fused away.

        >>> [EViT.tokens_after(n, 1, "keep", 0.7) for n in (197, 140, 100)]
        [140, 100, 72]
        """
        keep = math.ceil(round(value * (tokens - prefix), 9))  # 0.7 * 10 is 7.000000000000001 in binary
        return min(prefix + keep + 1, tokens)

    @staticmethod
    def budget_grid(tokens: int) -> tuple[str, tuple[float, ...]]:
        """Keep rates in steps of a thousandth."""
        return "keep", tuple(k / 1000 for k in range(1000, 0, -1))

    @staticmethod
    def plan(
        tap: Tap,
        size: torch.Tensor | None,
        prefix: int,
        tokens_out: int,
        options: Mapping[str, str],
        lowering: Lowering,
    ) -> Selection:
        """Order the patches of this block by the class token's attention."""
        attention = class_attention(tap, prefix)
        ordered, order = attention.topk(attention.shape[1], dim=-1)
        return Selection(
            prefix=prefix,
            keep=tokens_out - prefix - 1,
            order=order,
            attention=ordered,
            lowering=lowering,
        )

    @staticmethod
    def tracks_size(options: Mapping[str, str]) -> bool:
        """No sizes."""
        return False

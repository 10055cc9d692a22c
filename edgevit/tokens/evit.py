"""EViT: keep the tokens the class token attends to, fuse the rest.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", ICLR 2022
(arXiv:2202.07800), section 3.2; written from the formulas.

    a_j = mean over heads of softmax(q_cls · kᵀ · scale)_j    for patches j of the same block
    keep the k = ceil(keep · (N − P)) patches with the largest a, in that order
    f = Σ over the others of a_j x_j                          (raw weights: not divided by their sum)
    behind the block: prefix, kept, f

All P prefix tokens are protected (the paper protects the class token alone; a distillation or register token must
survive too). f competes as an ordinary token in later blocks. Sizes are not tracked. In positional models f stands
where the most attended fused patch stood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edgevit.tokens.base import ByShare, kept
from edgevit.tokens.lowering import Lowering, put, take_rows
from edgevit.tokens.plans import with_prefix
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import class_attention


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

    def source(self) -> torch.Tensor:
        """The fused token stands where its most attended patch stood."""
        return with_prefix(self.prefix, self.order[:, : self.keep + 1])

    def slots(self) -> torch.Tensor:
        """`[B, N]` int64; every fused patch goes to the last slot."""
        batch, count = self.order.shape
        rank = torch.arange(count).clamp(max=self.keep).expand(batch, -1)
        return with_prefix(self.prefix, put(self.order, rank, count))

    def dropped(self) -> torch.Tensor:
        """The fused patches."""
        return self.slots() == self.prefix + self.keep

    def restore(self, y: torch.Tensor) -> torch.Tensor | None:
        """Not asked for: `merges` is false."""
        return None


class EViT(ByShare):
    """`evit:keep=0.7@4,7,10`: keep 70 % of the patches at blocks 4, 7 and 10."""

    name: ClassVar[str] = "evit"
    needs_class_token: ClassVar[bool] = True
    patch_pooling: ClassVar[bool] = False
    merges: ClassVar[bool] = False

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """Prefix + kept + the fused token; no step where nothing, or only one token, would be fused away.

        >>> [EViT.tokens_after(n, 1, "keep", 0.7) for n in (197, 140, 100)]
        [140, 100, 72]
        """
        if key == "r":
            return max(tokens - int(value), min(prefix + 2, tokens))
        return min(prefix + kept(tokens - prefix, value) + 1, tokens)

    @staticmethod
    def plan(site: Site) -> Selection:
        """Order the patches of this block by the class token's attention."""
        attention = class_attention(site.tap, site.prefix)
        ordered, order = attention.topk(attention.shape[1], dim=-1)
        return Selection(
            prefix=site.prefix,
            keep=site.tokens_out - site.prefix - 1,
            order=order,
            attention=ordered,
            lowering=site.lowering,
        )

"""Token Transforming: every kept token becomes a mixture of all patches; one patch may go into several.

Zeng et al., "Token Transforming: A Unified and Training-Free Token Compression Framework for Vision Transformer
Acceleration", 2025 (arXiv:2506.05709), writes reduction as Y = W X with a many-to-many W. How W is made is not
published as code; **the recipe below is a reconstruction, not the authors'**: no number of theirs belongs to it.

    a_j = mean over heads of softmax(q_cls · kᵀ · scale)_j     T = the N' patches with the largest a
    W_ij = softmax over j of ( cos(k_i, k_j)/τ + log(own) [i = j] + log s_j )      i in T, j any patch
    y = W x
    s'_i = Σ_j s_j W_ij / Σ_t W_tj        later logits + log s'

cos is of the head-mean keys (as ToMe), `tau` is τ (0.05), `own` is 8: a token is mostly itself, then what resembles it.
Sizes are shared out by the columns of W, so their sum is kept; W s itself would leave every size near one and say that
nothing was merged. Prefix tokens are copied, and enter no mixture. Kept tokens stand at their own positions. To
restore, each patch takes the row it gave most to. The product costs N'·N·C: use it at few blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgevit.tokens.base import ByShare
from edgevit.tokens.lowering import Lowering, one_hot, put, take_rows
from edgevit.tokens.plans import with_prefix
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import class_attention, key_metric

TAU = 0.05
OWN = 8.0


@dataclass(frozen=True)
class Mixture:
    """Output patch i is Σ_j weights[i, j] x_j, and takes Σ_j shares[i, j] of the sizes.

    weights, shares: `[B, N' - P, N - P]`, rows and columns summing to one. kept: `[B, N' - P]`, the rows' own patches.
    """

    prefix: int
    kept: torch.Tensor
    weights: torch.Tensor
    shares: torch.Tensor
    lowering: Lowering

    def apply(self, x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One product for the rows, one for the sizes."""
        sizes = x.new_ones(x.shape[:2]) if size is None else size
        first = self.prefix
        mixed = self.weights.to(x.dtype) @ x[:, first:]
        gained = (self.shares.to(x.dtype) @ sizes[:, first:].unsqueeze(-1)).squeeze(-1)
        return torch.cat([x[:, :first], mixed], dim=1), torch.cat([sizes[:, :first], gained], dim=1)

    def source(self) -> torch.Tensor:
        """Where the kept tokens stood."""
        return with_prefix(self.prefix, self.kept)

    def slots(self) -> torch.Tensor:
        """`[B, N]`: its own slot for a kept token, else the one it gave most to."""
        batch, left, count = self.shares.shape
        ranks = torch.arange(1, left + 1, device=self.kept.device).expand(batch, -1)
        own = put(self.kept, ranks, count)  # 0: not kept
        return with_prefix(self.prefix, torch.where(own > 0, own - 1, self.shares.argmax(dim=1)))

    def dropped(self) -> torch.Tensor:
        """None."""
        return torch.zeros_like(self.slots(), dtype=torch.bool)

    def restore(self, y: torch.Tensor) -> torch.Tensor | None:
        """By slots."""
        return None


class TokenTransforming(ByShare):
    """`tokentransforming:keep=0.7@4,7,10`: keep 70 % of the patches, each mixed with all (a reconstruction)."""

    name: ClassVar[str] = "tokentransforming"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"prop": ("on", "off"), "tau": (), "own": ()}
    needs_class_token: ClassVar[bool] = True

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """`tau` is a temperature of cosines, `own` a factor."""
        low, high = {"tau": (0.01, 10.0), "own": (1.0, 1000.0)}[name]
        if not (value.replace(".", "", 1).isdecimal() and low <= float(value) <= high):
            return f"{name}={value} must be a number from {low:g} to {high:g}"
        return None

    @staticmethod
    def plan(site: Site) -> Mixture:
        """The most attended patches, and what each draws from all."""
        attention = class_attention(site.tap, site.prefix)
        kept = attention.topk(site.tokens_out - site.prefix, dim=-1).indices
        metric = key_metric(site.tap, site.prefix)
        logits = take_rows(metric, kept, site.lowering) @ metric.transpose(1, 2)  # [B, N' - P, N - P] cosines
        logits = logits / float(site.options.get("tau", TAU))
        own = one_hot(kept, attention.shape[1], logits.dtype)
        logits = logits + own * math.log(float(site.options.get("own", OWN)))
        if site.size is not None:
            logits = logits + site.size[:, site.prefix :].to(logits.dtype).log().unsqueeze(1)
        shares = logits.log_softmax(dim=-1).softmax(dim=1)  # W / Σ_t W_t, where W itself may vanish
        return Mixture(site.prefix, kept, logits.softmax(dim=-1), shares, site.lowering)

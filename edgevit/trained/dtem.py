"""DTEM: ToMe's matching on an embedding that was trained for it, instead of on the attention keys.

Lee and Hong, "Learning to Merge Tokens via Decoupled Embedding for Efficient Vision Transformers", NeurIPS 2024
(arXiv:2412.10569), section 3; written from the formulas.

    e_i = W_l n_i + b_l  in R^64,   n = norm1(x) of block l, what its keys are made from
    matching and size-weighted merging as in `edgevit.tokens.tome`, with e in place of the head-mean keys

The embeddings do not touch the stream, so with r = 0 the model is its backbone. The soft merging of the paper exists
in training only. That the embedding reads norm1(x) is our reading of "replaces K".

Keys are ours (`embeddings.{block}.weight`, `.bias`; the backbone's get `backbone.` in front): no key list of a public
checkpoint could be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from edgevit.errors import LoadError
from edgevit.stages import Tap
from edgevit.tokens.lowering import Lowering
from edgevit.tokens.protocol import Site, Tokens
from edgevit.tokens.tome import ToMe
from edgevit.trained.base import Trained, build_backbone, check_blocks

WIDTH = 64


def embed(embedding: nn.Module, normed: torch.Tensor) -> torch.Tensor:
    """A block's normalized input `[B, N, C]` → embeddings `[B, N, 64]`, prefix tokens included."""
    out: torch.Tensor = embedding(normed)
    return out


def decoupled(tap: Tap, embeddings: torch.Tensor) -> Tap:
    """The tap with embeddings `[B, N, 64]` where its keys were, as one head: what a key-matching method then reads."""
    return tap._replace(k=embeddings.unsqueeze(1))


def counts(tokens: int, prefix: int, r: Mapping[int, int], depth: int) -> tuple[int, ...]:
    """Tokens behind each block when block b (from 1) merges r[b], at most half of its patches.

    >>> counts(197, 1, {1: 11, 2: 11}, 3)
    (186, 175, 175)
    """
    after = []
    for block in range(1, depth + 1):
        tokens = ToMe.tokens_after(tokens, prefix, "r", r.get(block, 0))
        after.append(tokens)
    return tuple(after)


class Dtem(Trained):
    """Images `[B, 3, H, W]` → what the backbone's head gives, `[B, classes]`.

    backbone: timm's VisionTransformer. embeddings: one Linear per block. after: tokens behind each block.
    """

    method: ClassVar[str] = "dtem"

    def __init__(self, backbone: Any, r: int, blocks: Sequence[int], proportional: bool, lowering: Lowering) -> None:
        super().__init__(backbone)
        from edgevit.adapters.timm_vit import adapt

        vit = adapt(backbone)
        assert vit is not None  # build_backbone gives nothing else
        self.parts = vit  # views of the backbone: no module of its own, so no second set of keys
        depth = len(vit.blocks)
        self.embeddings = nn.ModuleList(nn.Linear(backbone.embed_dim, WIDTH) for _ in range(depth))
        self.after = counts(vit.tokens, vit.prefix_tokens, dict.fromkeys(blocks, r), depth)
        self.tokens = (vit.tokens, *self.after[:-1])
        self.proportional, self.lowering = proportional, lowering

    def steps(self) -> nn.ModuleList:
        """The embeddings."""
        return self.embeddings

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Each block: attend, match on the embedding, merge, feed forward."""
        vit = self.parts
        x: torch.Tensor = vit.stem(images)
        size: torch.Tensor | None = None
        for view, block, embedding, out in zip(
            vit.blocks, self.backbone.blocks, self.embeddings, self.after, strict=True
        ):
            tap = view.project(x, Tokens(size))
            if size is not None and self.proportional:
                tap = tap._replace(log_size=size.log())
            embeddings = embed(embedding, block.norm1(x)) if out < x.shape[1] else None
            x = view.finish(x, view.attend(tap, False)[0], tap)
            if embeddings is not None:
                x, size = self._merge(decoupled(tap, embeddings), x, size, out)
            x = view.feed_forward(x)
        logits: torch.Tensor = vit.head(x, size)
        return logits

    def _merge(
        self, tap: Tap, x: torch.Tensor, size: torch.Tensor | None, out: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """ToMe on whatever the tap calls keys: `[B, N, C]` → `[B, out, C]` and sizes."""
        site = Site(tap=tap, x=x, size=size, prefix=self.parts.prefix_tokens, tokens_out=out, lowering=self.lowering)
        return ToMe.plan(site).apply(x, size)


def create(
    name: str,
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    *,
    r: int = 11,
    blocks: Sequence[int] = (),
    proportional: bool = True,
    lowering: Lowering = "gather",
    options: Mapping[str, Any] | None = None,
) -> Dtem:
    """A DTEM on timm's `name` with random weights.

    r: tokens merged in each of `blocks` (from 1; none given: all). proportional: attention adds log(size), off for MAE
    weights. The weights fit any r. Raises LoadError.
    """
    if r < 0:
        raise LoadError(f"dtem: r={r} must be a whole number of tokens, 0 or more")
    backbone = build_backbone(name, num_classes, input_size, options)
    depth = len(backbone.blocks)
    blocks = check_blocks("dtem", blocks or range(1, depth + 1), depth)
    return Dtem(backbone, r, blocks, proportional, lowering).eval()

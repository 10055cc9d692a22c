"""Multiply-accumulates of a ViT under a schedule, as the literature counts them.

A block with N tokens in and N' behind its reduction: attention projections on N, the two products 2·N²·(H·d), the
feed-forward on N'. Patch embedding and head are fixed. The reduction's own arithmetic (under 1 %) is left out by
convention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from edgevit.stages import BlockView

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Placement


def block_macs(
    block: BlockView, tokens_in: int, tokens_out: int, placement: Placement | Literal["attention"] = "mid"
) -> int:
    """One block of one image (of one group).

    "early": half of the projections and the first product see N, the other half and the second product N'.
    "post": the whole block sees N. "front": the whole block sees N'. "attention": the two products see N', all else N.
    """
    attention, feed_forward = block.macs_per_token
    width = block.attention_width
    if placement == "attention":
        return (attention + feed_forward) * tokens_in + 2 * width * tokens_out**2
    if placement == "early":
        attended = attention * (tokens_in + tokens_out) // 2 + width * (tokens_in**2 + tokens_out**2)
        return attended + feed_forward * tokens_out
    if placement == "front":
        tokens_in = tokens_out
    behind = tokens_in if placement == "post" else tokens_out
    return attention * tokens_in + 2 * width * tokens_in**2 + feed_forward * behind


def blocks_macs(blocks: Sequence[BlockView], tokens: int, after: Sequence[int]) -> int:
    """All blocks of one stage: `tokens` enter the first, `after[i]` leave block i."""
    total = 0
    for block, out in zip(blocks, after, strict=True):
        total += block_macs(block, tokens, out)
        tokens = out
    return total

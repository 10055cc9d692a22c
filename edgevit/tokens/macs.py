"""Multiply-accumulates of a ViT under a schedule, as the literature counts them.

A block with N tokens in and N' behind its reduction: attention projections on N, the two products 2·N²·(H·d), the
feed-forward on N'. Patch embedding and head are fixed. The reduction's own arithmetic (under 1 %) is left out by
convention.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgevit.stages import BlockView


def block_macs(block: BlockView, tokens_in: int, tokens_out: int) -> int:
    """One block of one image."""
    attention, feed_forward = block.macs_per_token
    return attention * tokens_in + 2 * block.attention_width * tokens_in**2 + feed_forward * tokens_out


def blocks_macs(blocks: Sequence[BlockView], tokens: int, after: Sequence[int]) -> int:
    """All blocks: `tokens` enter the first, `after[i]` leave block i."""
    total = 0
    for block, out in zip(blocks, after, strict=True):
        total += block_macs(block, tokens, out)
        tokens = out
    return total

"""Floating-point operations of whatever runs: torch's own counter, and the CPU's fused attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """A counter to run a module under; two operations are one multiply-accumulate.

    torch counts the CPU's fused attention from version 2.15 on; in earlier ones it would be free.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        count: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
        return count

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: attention})

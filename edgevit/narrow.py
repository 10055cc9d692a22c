"""`scope=attention`: merge inside the attention, and leave the stream its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from edgevit.adapters.block import heads_first, heads_last
from edgevit.errors import ScheduleError
from edgevit.tokens.lowering import take_rows

if TYPE_CHECKING:
    from edgevit.reduced_vit import Step
    from edgevit.stages import BlockView, Tap
    from edgevit.tokens.protocol import Tokens


class NarrowAttention(nn.Module):
    """The attention of one block on merged tokens, as FastVGGT uses it (Shen et al., 2025, arXiv:2509.02560).

    Queries, keys (behind normalization and rotary positions) and values are merged by the step's plan, all tokens
    having size one (plain means for ToMe); each token then takes its group's result. The method decides as it would
    for the stream, but on the block's input.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, block: BlockView, tap: Tap, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """What `attend` gives for all tokens, `[B, H, N, dv]`. x: `[B, N, C]`, the block's input.

        Raises ScheduleError where a bias belongs to each pair of tokens (relative positions, windows).
        """
        if tap.bias is not None:
            raise ScheduleError("scope=attention merges queries, and this model adds a bias to each pair of them")
        plan, heads = self.step.method.plan(self.step.site(tap, x, tokens)), tap.q.shape[1]
        q, k, v = (heads_first(plan.apply(heads_last(part), None)[0], heads) for part in (tap.q, tap.k, tap.v))
        attended, _ = block.attend(tap._replace(q=q, k=k, v=v), False)
        return heads_first(take_rows(heads_last(attended), plan.slots(), self.step.lowering), heads)

"""Put a token schedule into a model: VitModel → ReducedModel.

The result is a new module that calls the original's parts; the original is never edited, so undoing is returning it.
Sizes travel as an argument from block to block, not as hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgevit.errors import ScheduleError
from edgevit.stages import ReducedModel, Tap, VitModel
from edgevit.tokens import method
from edgevit.tokens.lowering import Lowering
from edgevit.tokens.macs import blocks_macs
from edgevit.tokens.schedule import TokenSchedule, count_tokens

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Plan


@dataclass(frozen=True)
class Step:
    """The reduction behind one block's attention: how many tokens leave it."""

    schedule: TokenSchedule
    prefix: int
    tokens_out: int
    lowering: Lowering

    def plan(self, tap: Tap, size: torch.Tensor | None) -> Plan:
        """Decide, from what this block's attention saw."""
        return method(self.schedule.method).plan(
            tap, size, self.prefix, self.tokens_out, self.schedule.options, self.lowering
        )


class ReducedVit(nn.Module):
    """A Vision Transformer whose blocks pass on fewer tokens; images `[B, 3, H, W]` in, the model's output out."""

    def __init__(self, vit: VitModel, steps: Sequence[Step | None], proportional: bool) -> None:
        super().__init__()
        self.stem, self.head = vit.stem, vit.head
        self.blocks = nn.ModuleList(vit.blocks)  # type: ignore[arg-type]
        self.steps = tuple(steps)
        self.proportional = proportional

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` → `[B, classes]`."""
        return self.run(images)[0]

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, list[Plan | None]]:
        """The outputs, and the decision made behind each block (for pictures and statistics)."""
        x, size = self.stem(images), None
        plans: list[Plan | None] = []
        for block, step in zip(self.blocks, self.steps, strict=True):
            log_size = size.log() if size is not None and self.proportional else None
            x, tap = block.attend(x, log_size)  # type: ignore[operator]
            plan = step.plan(tap, size) if step else None
            if plan:
                x, size = plan.apply(x, size)
            plans.append(plan)
            x = block.feed_forward(x)  # type: ignore[operator]
        return self.head(x, size), plans


def dense_parts(vit: VitModel) -> ReducedVit:
    """The parts run with no reduction: must equal the original (adapters.prove_identity)."""
    return ReducedVit(vit, [None] * len(vit.blocks), proportional=False)


def dense_macs(module: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Multiply-accumulates of one image through any module: convolutions and matrix products, attention included."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), counter:  # its module hooks fail without gradients where a module's input is a parameter
        module(torch.zeros(1, *shape[1:]))
    return int(counter.get_total_flops()) // 2


def reduce(vit: VitModel, schedule: TokenSchedule, lowering: Lowering = "gather") -> ReducedModel:
    """Apply a schedule to an adapted model. Raises ScheduleError where they do not fit."""
    dense = dense_macs(vit.module, (1, 3, *vit.image_size))
    count = len(vit.blocks)
    fixed = dense - blocks_macs(vit.blocks, vit.tokens, (vit.tokens,) * count)
    if not schedule.is_none:
        wrong = method(schedule.method).check_model(vit)
        if wrong:
            raise ScheduleError(wrong)
    counts = count_tokens(schedule, vit.blocks, vit.tokens, vit.prefix_tokens, fixed)
    before = (vit.tokens, *counts.after[:-1])
    steps = [
        Step(counts.schedule, vit.prefix_tokens, out, lowering) if out < now else None
        for now, out in zip(before, counts.after, strict=True)
    ]
    proportional = not schedule.is_none and method(schedule.method).tracks_size(counts.schedule.options)
    module = vit.module if not any(steps) else ReducedVit(vit, steps, proportional).eval()
    return ReducedModel(
        module=module,
        original=vit.module,
        schedule=counts.schedule,
        tokens=counts.after,
        dense_macs=dense,
        reduced_macs=fixed + blocks_macs(vit.blocks, vit.tokens, counts.after),
        notes=counts.notes,
    )

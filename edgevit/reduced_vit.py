"""A reduced Vision Transformer as a module: it calls the original's parts, and never edits them.

Sizes and positions travel as arguments from block to block, not as hidden state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from edgevit.narrow import NarrowAttention
from edgevit.stages import Tap, VitModel
from edgevit.tokens import method
from edgevit.tokens.lowering import Lowering, take, take_rows
from edgevit.tokens.protocol import Site, Tokens
from edgevit.tokens.schedule import TokenSchedule

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Method, MixingPlan, Plan


@dataclass(frozen=True)
class Step:
    """One reduction point, in Python numbers; `site` adds what the block saw (fields: `protocol.Site`)."""

    schedule: TokenSchedule
    prefix: int
    tokens_out: int
    grid: tuple[int, int]
    block: int
    depth: int
    ordinal: int = 0
    points: int = 1
    lowering: Lowering = "gather"
    positional: bool = False
    explicit: bool = False
    trained: nn.Module | None = field(default=None, compare=False)

    @property
    def method(self) -> type[Method]:
        """The class that decides."""
        return method(self.schedule.method)

    @property
    def proportional(self) -> bool:
        """Whether attention adds log(size)."""
        return self.method.tracks_size(self.schedule.options)

    def site(self, tap: Tap, x: torch.Tensor, tokens: Tokens) -> Site:
        """What the method reads."""
        return Site(
            tap=tap,
            x=x,
            size=tokens.size,
            prefix=self.prefix,
            tokens_out=self.tokens_out,
            grid=self.grid,
            block=self.block,
            depth=self.depth,
            ordinal=self.ordinal,
            points=self.points,
            options=self.schedule.options,
            lowering=self.lowering,
            trained=self.trained,
        )


class Reducer(nn.Module):
    """A step as a module, so that a trace knows which operators decide and move tokens."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, tap: Tap, x: torch.Tensor, tokens: Tokens) -> tuple[torch.Tensor, Tokens, Plan]:
        """Decide on `x` `[B, N, C]` and apply."""
        plan = self.step.method.plan(self.step.site(tap, x, tokens))
        moved, size = plan.apply(x, tokens.size)
        place = None
        if self.step.positional:
            source = plan.source()
            place = source if tokens.place is None else take(tokens.place, source, self.step.lowering)
        return moved, Tokens(size, place), plan


class ReducedBlock(nn.Module):
    """One block with its reduction: `[B, N, C]` → `[B, N', C]`."""

    def __init__(self, block: nn.Module, step: Step | None, proportional: bool) -> None:
        super().__init__()
        self.block: Any = block
        self.narrow = NarrowAttention(step) if step and step.schedule.attention_only else None
        self.reducer = Reducer(step) if step and not self.narrow else None
        self.proportional = proportional

    def forward(
        self, x: torch.Tensor, tokens: Tokens, show: bool = False
    ) -> tuple[torch.Tensor, Tokens, Plan | None, Tap]:
        """The stream, what travels with it, the plan, and the tap. show: put the probabilities into the tap."""
        block, plan = self.block, None
        placement = self.reducer.step.method.placement if self.reducer else None
        if placement == "early":
            return self._early(x, tokens)
        if self.reducer and placement == "front":
            head = x.unsqueeze(1)
            x, tokens, plan = self.reducer(Tap(head, head, head, 1.0), x, tokens)
        tap = block.project(x, tokens)._replace(log_size=self._log_size(tokens))
        if self.narrow:
            x = block.finish(x, self.narrow(block, tap, x, tokens), tap)
            return block.feed_forward(x), tokens, None, tap
        explicit = show or (self.reducer is not None and self.reducer.step.explicit)
        attended, probabilities = block.attend(tap, explicit)
        tap = tap._replace(probabilities=probabilities)
        x = block.finish(x, attended, tap)
        if self.reducer and placement == "mid":
            x, tokens, plan = self.reducer(tap, x, tokens)
        x = block.feed_forward(x)
        if self.reducer and placement == "post":
            x, tokens, plan = self.reducer(tap, x, tokens)
        return x, tokens, plan, tap

    def _early(self, x: torch.Tensor, tokens: Tokens) -> tuple[torch.Tensor, Tokens, Plan | None, Tap]:
        """Queries and keys see all tokens; values, output and feed-forward the reduced ones (MCTF, section 3.4)."""
        block = self.block
        assert self.reducer is not None
        tap = block.query_keys(x, tokens)._replace(log_size=self._log_size(tokens))
        probabilities = block.attend(tap, True)[1]
        tap = tap._replace(probabilities=probabilities)
        x, tokens, plan = self.reducer(tap, x, tokens)
        mixed = cast("MixingPlan", plan).mix(probabilities)
        attended = block.weigh(mixed, self._log_size(tokens)) @ block.values(x)
        return block.feed_forward(block.finish(x, attended, tap)), tokens, plan, tap

    def _log_size(self, tokens: Tokens) -> torch.Tensor | None:
        """What proportional attention adds to its scores: `[B, N]`."""
        return tokens.size.log() if self.proportional and tokens.size is not None else None


class ReducedVit(nn.Module):
    """A Vision Transformer whose blocks pass on fewer tokens; images `[B, 3, H, W]` in, the model's output out."""

    def __init__(
        self,
        vit: VitModel,
        steps: Mapping[int, Step] | None = None,
        until: int | None = None,
    ) -> None:
        super().__init__()
        steps = steps or {}
        self.stem, self.head = vit.stem, vit.head
        self.stages = vit.stages
        self.steps = tuple(steps.get(number) for number in range(1, len(vit.blocks) + 1))
        proportional = any(step.proportional for step in steps.values())
        self.blocks = nn.ModuleList(
            ReducedBlock(cast(nn.Module, block), step, proportional)
            for block, step in zip(vit.blocks, self.steps, strict=True)
        )
        # stages hold callables outside the module tree; this makes their parameters part of it
        self.between = nn.ModuleList(
            m for stage in vit.stages for m in (stage.enter, stage.leave) if isinstance(m, nn.Module)
        )
        # all steps hold the same; here its parameters are part of the module tree, once
        self.trained = next((step.trained for step in steps.values() if step.trained is not None), None)
        self.until = until

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` → what the model returns."""
        return self.run(images)[0]

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, list[Plan | None]]:
        """The outputs, and the decision made behind each block (for pictures and statistics)."""
        x, tokens = self.stem(images), Tokens()
        plans: list[Plan | None] = []
        for stage in self.stages:
            entered = x
            if stage.enter:
                x = stage.enter(x)
            tokens = Tokens()
            held: list[Plan | None] = []  # what the next restore undoes
            for _ in stage.blocks:
                x, tokens, plan, _ = self.blocks[len(plans)](x, tokens)
                plans.append(plan)
                held.append(plan)
                if len(plans) == self.until:
                    x, tokens, held = restore(x, held, self._lowering), Tokens(), []
            if stage.restores:
                x, tokens = restore(x, held, self._lowering), Tokens()
            if stage.leave:
                x = stage.leave(x, entered) if stage.shortcut else stage.leave(x)
        return self.head(x, tokens.size), plans

    @property
    def _lowering(self) -> Lowering:
        return next((step.lowering for step in self.steps if step), "gather")


def restore(x: torch.Tensor, plans: Sequence[Plan | None], lowering: Lowering) -> torch.Tensor:
    """Undo plans, last first: `[B, N', C]` → `[B, N, C]`. Slots compose as integers, so rows move once."""
    index: torch.Tensor | None = None
    for plan in reversed([plan for plan in plans if plan]):
        own = plan.restore(x if index is None else take_rows(x, index, lowering))
        if own is not None:
            x, index = own, None
        else:
            index = plan.slots() if index is None else take(index, plan.slots(), lowering)
    return x if index is None else take_rows(x, index, lowering)


def dense_parts(vit: VitModel) -> ReducedVit:
    """The parts run with no reduction: must equal the original (adapters.prove_identity)."""
    return ReducedVit(vit).eval()

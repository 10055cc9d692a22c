"""Put a token schedule into a model: VitModel → ReducedModel.

The result is a new module that calls the original's parts; the original is never edited, so undoing is returning it.
Sizes and positions travel as arguments from block to block, not as hidden state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from edgevit.errors import ScheduleError
from edgevit.stages import ReducedModel, Stage, Tap, VitModel
from edgevit.tokens import method
from edgevit.tokens.lowering import Lowering, take, take_rows
from edgevit.tokens.protocol import Site, Tokens
from edgevit.tokens.schedule import Counts, TokenSchedule, count_tokens

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Method, MixingPlan, Plan, Selector


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
        self.reducer = Reducer(step) if step else None
        self.proportional = proportional

    def forward(
        self, x: torch.Tensor, tokens: Tokens, show: bool = False
    ) -> tuple[torch.Tensor, Tokens, Plan | None, Tap]:
        """The stream, what travels with it, the plan, and the tap. show: put the probabilities into the tap."""
        block, plan = self.block, None
        if self.reducer and self.reducer.step.method.placement == "early":
            return self._early(x, tokens)
        tap = self._sized(block.project(x, tokens), tokens)
        explicit = show or (self.reducer is not None and self.reducer.step.method.probabilities)
        attended, probabilities = block.attend(tap, explicit)
        tap = tap._replace(probabilities=probabilities)
        x = block.finish(x, attended, tap)
        late = self.reducer is not None and self.reducer.step.method.placement == "post"
        if self.reducer and not late:
            x, tokens, plan = self.reducer(tap, x, tokens)
        x = block.feed_forward(x)
        if self.reducer and late:
            x, tokens, plan = self.reducer(tap, x, tokens)
        return x, tokens, plan, tap

    def _early(self, x: torch.Tensor, tokens: Tokens) -> tuple[torch.Tensor, Tokens, Plan | None, Tap]:
        """Queries and keys see all tokens; values, output and feed-forward the reduced ones (MCTF, section 3.4)."""
        block = self.block
        assert self.reducer is not None
        tap = self._sized(block.query_keys(x), tokens)
        probabilities = block.attend(tap, True)[1]
        tap = tap._replace(probabilities=probabilities)
        x, tokens, plan = self.reducer(tap, x, tokens)
        attended = cast("MixingPlan", plan).mix(probabilities) @ block.values(x)
        return block.feed_forward(block.finish(x, attended, tap)), tokens, plan, tap

    def _sized(self, tap: Tap, tokens: Tokens) -> Tap:
        if tokens.size is None or not self.proportional:
            return tap
        return tap._replace(log_size=tokens.size.log())


class ReducedVit(nn.Module):
    """A Vision Transformer whose blocks pass on fewer tokens; images `[B, 3, H, W]` in, the model's output out."""

    def __init__(
        self,
        vit: VitModel,
        steps: Mapping[int, Step] | None = None,
        selection: Step | None = None,
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
        self.selection, self.until = selection, until

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` → what the model returns."""
        return self.run(images)[0]

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, list[Plan | None]]:
        """The outputs, and the decision made behind each block (for pictures and statistics)."""
        x, tokens = self.stem(images), Tokens()
        plans: list[Plan | None] = []
        taps: dict[int, Tap] = {}
        for stage in self.stages:
            if stage.enter:
                x = stage.enter(x)
            tokens, pending = Tokens(), 0
            for _ in stage.blocks:
                number = len(plans) + 1
                shown = number in self._read
                x, tokens, plan, tap = self.blocks[number - 1](x, tokens, shown and self._explicit)
                plans.append(plan)
                pending += 1
                if shown:
                    taps[number] = tap
                if number == self.until:
                    x, tokens, pending = restore(x, plans[len(plans) - pending :], self._lowering), Tokens(), 0
            if stage.restores:
                x, tokens = restore(x, plans[len(plans) - pending :], self._lowering), Tokens()
            if stage.leave:
                x = stage.leave(x)
        if self.selection:
            x = self._select(x, taps)
        return self.head(x, tokens.size), plans

    @property
    def _lowering(self) -> Lowering:
        return next((step.lowering for step in self.steps if step), "gather")

    @property
    def _read(self) -> tuple[int, ...]:
        if self.selection is None:
            return ()
        return cast("type[Selector]", self.selection.method).reads(len(self.steps), self.selection.schedule.options)

    @property
    def _explicit(self) -> bool:
        return self.selection is not None and self.selection.method.probabilities

    def _select(self, x: torch.Tensor, taps: Mapping[int, Tap]) -> torch.Tensor:
        """Output tokens `[B, N, C]` → the chosen `[B, K, C]`."""
        assert self.selection is not None
        selector = cast("type[Selector]", self.selection.method)
        ordered = [taps[number] for number in self._read]
        index = selector.choose(ordered, x, self.selection.site(ordered[-1], x, Tokens()))
        return take_rows(x, index, self.selection.lowering)


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


def dense_macs(module: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Multiply-accumulates of one image through any module: convolutions and matrix products, attention included."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), counter:  # its module hooks fail without gradients where a module's input is a parameter
        module(torch.zeros(1, *shape[1:]))
    return int(counter.get_total_flops()) // 2


def reduce(vit: VitModel, schedule: TokenSchedule, lowering: Lowering = "gather") -> ReducedModel:
    """Apply a schedule to an adapted model. Raises ScheduleError where they do not fit."""
    _check_fit(vit, schedule)
    dense = dense_macs(vit.module, (1, 3, *vit.image_size))
    fixed = dense - count_tokens(TokenSchedule.none(), vit.stages, 0).macs
    counts = count_tokens(schedule, vit.stages, fixed)
    steps = _steps(vit, counts, lowering)
    selecting = not schedule.is_none and method(schedule.method).selector
    module: nn.Module = vit.module
    if steps and selecting:
        module = ReducedVit(vit, selection=next(iter(steps.values()))).eval()
    elif steps:
        module = ReducedVit(vit, steps, until=schedule.until).eval()
    return ReducedModel(
        module=module,
        original=vit.module,
        schedule=counts.schedule,
        tokens=counts.after,
        dense_macs=dense,
        reduced_macs=counts.macs,
        notes=counts.notes,
    )


def _check_fit(vit: VitModel, schedule: TokenSchedule) -> None:
    if schedule.is_none:
        return
    if schedule.until and len(vit.stages) > 1:
        raise ScheduleError(f"{schedule}: until= restores inside one stage of blocks, and {vit.family} has several")
    restoring = any(stage.restores for stage in vit.stages) or schedule.until is not None
    wrong = method(schedule.method).check_model(vit, restoring)
    if wrong:
        raise ScheduleError(wrong)


def _steps(vit: VitModel, counts: Counts, lowering: Lowering) -> dict[int, Step]:
    """The reduction points, by block number."""
    homes: list[Stage] = [stage for stage in vit.stages for _ in stage.blocks]
    moving = [i for i, (now, out) in enumerate(zip(counts.before, counts.after, strict=True)) if out < now]
    trained = getattr(method(counts.schedule.method), "weights", None) if moving else None
    return {
        index + 1: Step(
            schedule=counts.schedule,
            prefix=homes[index].prefix,
            tokens_out=counts.after[index],
            grid=homes[index].grid,
            block=index + 1,
            depth=len(homes),
            ordinal=ordinal,
            points=len(moving),
            lowering=lowering,
            positional=vit.positional,
            trained=vit.trained[trained] if trained else None,
        )
        for ordinal, index in enumerate(moving)
    }

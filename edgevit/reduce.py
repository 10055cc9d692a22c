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
from edgevit.narrow import NarrowAttention
from edgevit.stages import ReducedModel, Stage, Tap, VitModel
from edgevit.tokens import method
from edgevit.tokens.lowering import Lowering, take, take_rows
from edgevit.tokens.protocol import Site, Tokens
from edgevit.tokens.schedule import Counts, TokenSchedule, count_tokens, scheduled_blocks

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
        tap = self._sized(block.project(x, tokens), tokens)
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
        tap = self._sized(block.query_keys(x, tokens), tokens)
        probabilities = block.attend(tap, True)[1]
        tap = tap._replace(probabilities=probabilities)
        x, tokens, plan = self.reducer(tap, x, tokens)
        mixed = cast("MixingPlan", plan).mix(probabilities)
        attended = block.weigh(mixed, self._sized(tap._replace(log_size=None), tokens).log_size) @ block.values(x)
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
            tokens, pending = Tokens(), 0
            for _ in stage.blocks:
                number = len(plans) + 1
                x, tokens, plan, _ = self.blocks[number - 1](x, tokens)
                plans.append(plan)
                pending += 1
                if number == self.until:
                    x, tokens, pending = restore(x, plans[len(plans) - pending :], self._lowering), Tokens(), 0
            if stage.restores:
                x, tokens = restore(x, plans[len(plans) - pending :], self._lowering), Tokens()
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


def dense_macs(module: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Multiply-accumulates of one image through any module: convolutions and matrix products, attention included."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), counter:  # its module hooks fail without gradients where a module's input is a parameter
        module(torch.zeros(1, *shape[1:]))
    return int(counter.get_total_flops()) // 2


def reduce(
    vit: VitModel, schedule: TokenSchedule, lowering: Lowering = "gather", explicit: bool = False
) -> ReducedModel:
    """Apply a schedule to an adapted model. Raises ScheduleError where they do not fit.

    lowering, explicit: the forms a target prefers (`runtimes.base.Policy`); all give the same values.
    """
    _check_fit(vit, schedule)
    if not vit.blocks:
        from edgevit.trained.rebuild import rebuild

        return rebuild(vit, schedule, lowering)
    if not schedule.is_none and method(schedule.method).selector:
        from edgevit.selecting import select

        return select(vit, schedule, lowering)
    dense = dense_macs(vit.module, (1, 3, *vit.image_size))
    fixed = dense - count_tokens(TokenSchedule.none(), vit.stages, 0).macs
    counts = count_tokens(schedule, vit.stages, fixed)
    wrong = None if schedule.is_none else method(schedule.method).check_counts(counts, vit)
    if wrong:
        raise ScheduleError(f"{counts.schedule}: {wrong}")
    steps = _steps(vit, counts, lowering, explicit)
    module: nn.Module = vit.module
    if steps:
        module = ReducedVit(vit, steps, until=schedule.until).eval()
    return ReducedModel(
        module=module,
        original=vit.module,
        schedule=counts.schedule,
        tokens=counts.before if schedule.attention_only else counts.after,
        dense_macs=dense,
        reduced_macs=counts.macs,
        notes=(*counts.notes, *_unused(vit, schedule)),
    )


def _unused(vit: VitModel, schedule: TokenSchedule) -> tuple[str, ...]:
    """What was trained for a reduction that the schedule does not make."""
    others = [name for name in vit.trained if name != schedule.method]
    return tuple(f"the {name} weights of this checkpoint are not used; --reduce {name}:... uses them" for name in others)


def _check_fit(vit: VitModel, schedule: TokenSchedule) -> None:
    if schedule.is_none:
        return
    if not vit.blocks and not method(schedule.method).architecture:
        raise ScheduleError(
            f"{schedule.method} reduces between blocks, and {vit.family} runs as it was trained; its own settings are "
            f"--reduce {next(iter(vit.trained))}:..., see `edgevit methods`"
        )
    if schedule.until and len(vit.stages) > 1:
        raise ScheduleError(f"{schedule}: until= restores inside one stage of blocks, and {vit.family} has several")
    restoring = any(stage.restores for stage in vit.stages) or schedule.until is not None
    wrong = method(schedule.method).check_model(vit, restoring)
    if wrong:
        raise ScheduleError(wrong)


def _steps(vit: VitModel, counts: Counts, lowering: Lowering, explicit: bool) -> dict[int, Step]:
    """The reduction points, by block number."""
    homes: list[Stage] = [stage for stage in vit.stages for _ in stage.blocks]
    moving = [i for i, (now, out) in enumerate(zip(counts.before, counts.after, strict=True)) if out < now]
    where = scheduled_blocks(counts.schedule, len(homes)) if moving else ()
    cls = method(counts.schedule.method) if moving else None
    trained = getattr(cls, "weights", None)
    shown = cls is not None and (cls.probabilities or (explicit and cls.needs_class_token))
    return {
        index + 1: Step(
            schedule=counts.schedule,
            prefix=homes[index].prefix,
            tokens_out=counts.after[index],
            grid=homes[index].grid,
            block=index + 1,
            depth=len(homes),
            ordinal=where.index(index + 1),
            points=len(where),
            lowering=lowering,
            positional=vit.positional,
            explicit=shown,
            trained=vit.trained[trained] if trained else None,
        )
        for index in moving
    }

"""Put a token schedule into a model: VitModel → ReducedModel.

The result is a new module that calls the original's parts; the original is never edited, so undoing is returning it.
Sizes and positions travel as arguments from block to block, not as hidden state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from edgevit.errors import ScheduleError
from edgevit.flops import flop_counter
from edgevit.reduced_vit import ReducedVit, Step
from edgevit.stages import ReducedModel, Stage, VitModel
from edgevit.tokens import method
from edgevit.tokens.counting import Counts, count_tokens, scheduled_blocks
from edgevit.tokens.lowering import Lowering
from edgevit.tokens.schedule import TokenSchedule


def dense_macs(module: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Multiply-accumulates of one image through any module: convolutions and matrix products, attention included."""
    return count_macs(lambda: module(torch.zeros(shape))) // shape[0]  # a program takes no other batch than its own


def count_macs(run: Callable[[], object]) -> int:
    """Multiply-accumulates of whatever `run` computes."""
    counter = flop_counter()
    with torch.enable_grad(), counter:  # its module hooks fail without gradients where a module's input is a parameter
        run()
    return int(counter.get_total_flops()) // 2


class Cost(NamedTuple):
    """Multiply-accumulates of one image: of the whole dense model, and of everything but its blocks."""

    dense: int
    fixed: int


def dense_cost(vit: VitModel) -> Cost:
    """Count a model once; whoever reduces it many times passes the result on."""
    dense = dense_macs(vit.module, (1, 3, *vit.image_size))
    return Cost(dense, dense - count_tokens(TokenSchedule.none(), vit.stages, 0).macs)


def reduce(
    vit: VitModel,
    schedule: TokenSchedule,
    lowering: Lowering = "gather",
    explicit: bool = False,
    cost: Cost | None = None,
) -> ReducedModel:
    """Apply a schedule to an adapted model. Raises ScheduleError where they do not fit.

    lowering, explicit: the forms a target prefers (`runtimes.base.Policy`); all give the same values. cost: of the
    dense model, where the caller has counted it.
    """
    _check_fit(vit, schedule)
    if not vit.blocks:
        from edgevit.trained.rebuild import rebuild

        return rebuild(vit, schedule, lowering)
    if not schedule.is_none and method(schedule.method).selector:
        from edgevit.selecting import select

        return select(vit, schedule, lowering)
    cost = cost or dense_cost(vit)
    counts = count_tokens(schedule, vit.stages, cost.fixed)
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
        dense_macs=cost.dense,
        reduced_macs=counts.macs,
        notes=(*counts.notes, *_unused(vit, schedule)),
    )


def _unused(vit: VitModel, schedule: TokenSchedule) -> tuple[str, ...]:
    """What was trained for a reduction that the schedule does not make."""
    others = [name for name in vit.trained if name != schedule.method]
    return tuple(
        f"the {name} weights of this checkpoint are not used; --reduce {name}:... uses them" for name in others
    )


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

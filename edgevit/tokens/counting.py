"""Schedule → counts: tokens before and behind each block of a model, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgevit.errors import ScheduleError
from edgevit.stages import Stage
from edgevit.tokens import method
from edgevit.tokens.macs import block_macs
from edgevit.tokens.schedule import TokenSchedule


def scheduled_blocks(schedule: TokenSchedule, depth: int) -> tuple[int, ...]:
    """The blocks (from 1) that a schedule names, or its method's own ones."""
    cls = method(schedule.method)
    return schedule.blocks or cls.default_blocks(schedule.until or depth)


@dataclass(frozen=True)
class Counts:
    """A schedule on a model: its exact form, tokens of one group before and behind each block, what had to give.

    With `scope=attention`, `after` is what each block's attention works on, and the stream keeps `before`.
    macs: reduced multiply-accumulates of one image, `fixed_macs` included.
    """

    schedule: TokenSchedule
    before: tuple[int, ...]
    after: tuple[int, ...]
    macs: int
    notes: tuple[str, ...]


def count_tokens(schedule: TokenSchedule, stages: Sequence[Stage], fixed_macs: int) -> Counts:
    """Resolve a schedule on a model's stages. Raises ScheduleError where it does not fit.

    fixed_macs: everything but the stages' blocks; needed for `flops=`.
    """
    depth = sum(len(stage.blocks) for stage in stages)
    if schedule.is_none:
        return _walk(schedule, stages, {}, fixed_macs)
    cls = method(schedule.method)
    if cls.selector:
        from edgevit.tokens.selector import count_selected

        return count_selected(schedule, stages, fixed_macs)
    beyond = [b for b in (*schedule.blocks, schedule.until or 1) if b > depth]
    if beyond:
        raise ScheduleError(f"{schedule}: the model has {depth} blocks, so there is no block {beyond[0]}")
    if schedule.is_auto:
        raise ScheduleError(f"{schedule} is searched on calibration images: edgevit export ... --calib DATA")
    if schedule.key == "flops":
        return _solve(schedule, stages, fixed_macs)
    where = scheduled_blocks(schedule, depth)
    amounts = schedule.amounts * len(where) if len(schedule.amounts) == 1 else schedule.amounts
    return _walk(schedule, stages, dict(zip(where, amounts, strict=True)), fixed_macs)


def _walk(schedule: TokenSchedule, stages: Sequence[Stage], amounts: Mapping[int, float], fixed_macs: int) -> Counts:
    """Count block by block; each stage begins with all of its tokens, and `until` brings them back."""
    cls = None if schedule.is_none else method(schedule.method)
    before: list[int] = []
    after: list[int] = []
    notes: list[str] = []
    macs = fixed_macs
    for stage in stages:
        now, given = stage.tokens, list[float]()
        for block in stage.blocks:
            number = len(after) + 1
            new = now
            if cls and number in amounts:
                given.append(amounts[number])
                new = cls.tokens_at(stage.tokens, now, stage.prefix, schedule.key, given)
                if schedule.key == "r" and now - new < amounts[number]:
                    notes.append(
                        f"block {number}: r={amounts[number]:g} is more than can go of its {now - stage.prefix} "
                        f"patches; {now - new} do"
                    )
            placement = "attention" if schedule.attention_only else cls.placement if cls else "mid"
            macs += stage.groups * block_macs(block, now, new, placement)
            before.append(now)
            after.append(new)
            if not schedule.attention_only:
                now = stage.tokens if number == schedule.until else new
    return Counts(schedule, tuple(before), tuple(after), macs, tuple(notes))


def _solve(schedule: TokenSchedule, stages: Sequence[Stage], fixed_macs: int) -> Counts:
    """The least reduction on the method's grid whose MACs keep the budget; MACs fall along the grid."""
    cls = method(schedule.method)
    budget = schedule.amounts[0] * count_tokens(TokenSchedule.none(), stages, fixed_macs).macs
    key, grid = cls.budget_grid(max(stage.tokens for stage in stages))

    def at(index: int) -> Counts:
        exact = TokenSchedule(schedule.method, key, (grid[index],), schedule.blocks, schedule.options)
        return count_tokens(exact, stages, fixed_macs)

    low, high = 0, len(grid) - 1
    most = at(high)
    if most.macs > budget:
        share = math.ceil(most.macs / budget * schedule.amounts[0] * 1000) / 1000  # upwards: it can be typed
        raise ScheduleError(f"{schedule}: the most this schedule can cut is flops={share:g} (at {most.schedule})")
    while low < high:
        middle = (low + high) // 2
        if at(middle).macs <= budget:
            high = middle
        else:
            low = middle + 1
    return at(low)

"""Search the schedule of one method that changes a model's outputs least at a MAC budget: `METHOD:auto,flops=0.65`.

Training-free and without labels: the loss of a schedule is how far the reduced model's outputs are from the dense
model's on calibration images. Candidates are where to reduce (2 to 4 points, the method's own blocks, every block) and
how the reduction is shared among the points; each is scaled until its MACs just keep the budget. Schedules that one
would write by hand are among the candidates of the last round, so the result is never behind them on these images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgevit.distance import divergence
from edgevit.errors import ScheduleError
from edgevit.reduce import Cost, dense_cost, reduce
from edgevit.tokens import method
from edgevit.tokens.counting import Counts, count_tokens
from edgevit.tokens.schedule import TokenSchedule

if TYPE_CHECKING:
    import torch

    from edgevit.stages import VitModel

ROUNDS, BROOD, PARENTS, FINALISTS = 4, 8, 5, 6
FIRST_IMAGES = 64
"""Images of the early rounds; the last round uses all."""
BATCH, MOST_IMAGES = 32, 512
STEPS = 1000
"""Fineness with which a candidate is scaled to the budget."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Shape:
    """A candidate before it is scaled: reduction `weights[i]` at block `blocks[i]`; the largest weight is 1."""

    blocks: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """A schedule and its loss on `images` images: mean divergence of the outputs, and percent of equal top-1."""

    schedule: TokenSchedule
    loss: float
    agreement: float
    images: int


@dataclass(frozen=True)
class Found:
    """The best schedule, and everything the last round measured, best first."""

    schedule: TokenSchedule
    trials: tuple[Trial, ...] = field(repr=False)


def search(
    vit: VitModel, asked: TokenSchedule, batches: Sequence[torch.Tensor], progress: Progress = lambda done, total: None
) -> Found:
    """Resolve `METHOD:auto,flops=F` on calibration images, a list of batches `[B, 3, H, W]`.

    Deterministic given the schedule's `seed`. Raises ScheduleError: the budget is out of reach, or no images.
    """
    if not batches:
        raise ScheduleError(f"{asked}: a searched schedule needs calibration images, and there is none")
    cost = dense_cost(vit)
    judge = _Judge(vit, batches, cost)
    space = _Space(vit, asked, cost)
    rng = random.Random(int(asked.options.get("seed", "0")))
    hand = space.by_hand()
    pool = list(dict.fromkeys([*space.starts(rng), *hand]))
    total = len(pool) + ROUNDS * BROOD + FINALISTS + len(hand)
    done = 0

    def measure(schedules: Sequence[TokenSchedule], few: bool) -> list[Trial]:
        nonlocal done
        trials = []
        for schedule in schedules:
            trials.append(judge.trial(schedule, few))
            done += 1
            progress(min(done, total), total)
        return trials

    scored = sorted(measure(pool, few=True), key=_loss)
    for _ in range(ROUNDS):
        known = {t.schedule for t in scored}
        children = [space.mutate(t.schedule, rng) for t in scored[:PARENTS] for _ in range(BROOD)]
        fresh = [child for child in dict.fromkeys(children) if child and child not in known]
        scored = sorted(scored + measure(rng.sample(fresh, min(BROOD, len(fresh))), few=True), key=_loss)
    finalists = list(dict.fromkeys([t.schedule for t in scored[:FINALISTS]] + hand))
    trials = sorted(measure(finalists, few=False), key=_loss)
    progress(total, total)
    return Found(trials[0].schedule, tuple(trials))


def _loss(trial: Trial) -> tuple[float, str]:
    return trial.loss, str(trial.schedule)  # the text breaks ties, so the order never depends on chance


class _Judge:
    """Compares outputs with the dense model's, which it computes once."""

    def __init__(self, vit: VitModel, batches: Sequence[torch.Tensor], cost: Cost) -> None:
        import torch

        self.vit, self.batches, self.cost = vit, batches, cost
        with torch.no_grad():
            self.dense = [vit.module(batch) for batch in batches]

    def trial(self, schedule: TokenSchedule, few: bool) -> Trial:
        """Mean loss over the images (the first ones, for early rounds)."""
        import torch

        module = reduce(self.vit, schedule, cost=self.cost).module
        loss, same, images = 0.0, 0, 0
        with torch.no_grad():
            for batch, want in zip(self.batches, self.dense, strict=True):
                got = module(batch)
                loss += float(divergence(got, want).sum())
                if want.ndim == 2:
                    same += int((got.argmax(-1) == want.argmax(-1)).sum())
                images += len(batch)
                if few and images >= FIRST_IMAGES:
                    break
        return Trial(schedule, loss / images, 100 * same / images, images)


class _Space:
    """All schedules of one method that keep the budget."""

    def __init__(self, vit: VitModel, asked: TokenSchedule, cost: Cost) -> None:
        self.vit, self.asked, self.cls = vit, asked, method(asked.method)
        self.depth = len(vit.blocks)
        self.fixed = cost.fixed
        self.budget = asked.amounts[0] * cost.dense
        self.key = self.cls.budget_grid(vit.tokens)[0]
        options = {k: v for k, v in asked.options.items() if k not in ("points", "seed")}
        self.base = replace(asked, key=self.key, amounts=(), blocks=(), options=options)
        self.most = int(asked.options.get("points", self.depth))

    def _count(self, schedule: TokenSchedule) -> Counts:
        return count_tokens(schedule, self.vit.stages, self.fixed)

    def by_hand(self) -> list[TokenSchedule]:
        """What one would write: the method's own blocks, every block, evenly spaced points, solved for the budget.

        Raises ScheduleError when none of them keeps the budget.
        """
        places = [self.cls.default_blocks(self.depth), tuple(range(1, self.depth + 1))]
        places += [tuple(self.depth * i // (n + 1) for i in range(1, n + 1)) for n in (2, 3, 4)]
        places += [tuple(self.depth * i // (n + 1) + 1 for i in range(1, n + 1)) for n in (2, 3)]
        found: list[TokenSchedule] = []
        refused: list[str] = []
        for blocks in dict.fromkeys(places):
            if not 0 < len(blocks) <= self.most or len(set(blocks)) < len(blocks) or blocks[0] < 1:
                continue
            ask = replace(self.base, key="flops", amounts=self.asked.amounts, blocks=blocks)
            try:
                found.append(self._explicit(self._count(ask).schedule, blocks))
            except ScheduleError as error:
                refused.append(str(error))
        if not found:
            raise ScheduleError(refused[0] if refused else f"{self.asked}: points= leaves no block to reduce at")
        return found

    def _explicit(self, schedule: TokenSchedule, blocks: tuple[int, ...]) -> TokenSchedule:
        """One amount per block, so that equal schedules are equal objects."""
        return replace(schedule, blocks=blocks, amounts=schedule.amounts * len(blocks))

    def starts(self, rng: random.Random) -> list[TokenSchedule]:
        """Random shapes of 2 to 4 points, earlier and later, equal and unequal."""
        points = [n for n in (2, 3, 4) if n <= min(self.most, self.depth)] or [1]
        shapes = []
        for index in range(4 * BROOD):
            n = points[index % len(points)]
            blocks = tuple(sorted(rng.sample(range(1, self.depth + 1), n)))
            shapes.append(Shape(blocks, tuple(rng.uniform(0.3, 1.0) for _ in blocks)))
        return [schedule for schedule in map(self.scaled, shapes) if schedule]

    def mutate(self, schedule: TokenSchedule, rng: random.Random) -> TokenSchedule | None:
        """Move a point, change a share, add or drop a point."""
        blocks = list(schedule.blocks)
        amounts = [a if self.key == "r" else 1 - a for a in schedule.amounts]
        weights = dict(zip(blocks, [max(a, 1e-3) / max(*amounts, 1e-3) for a in amounts], strict=True))
        at = rng.choice(blocks)
        kind = rng.choice(("move", "share", "share", "add", "drop"))
        free = [b for b in range(1, self.depth + 1) if b not in weights]
        if kind == "move" and free:
            near = [b for b in free if abs(b - at) <= 2] or free
            weights[rng.choice(near)] = weights.pop(at)
        elif kind == "add" and free and len(blocks) < min(self.most, self.depth):
            weights[rng.choice(free)] = rng.uniform(0.2, 1.0)
        elif kind == "drop" and len(blocks) > 1:
            del weights[at]
        else:
            weights[at] *= rng.choice((0.5, 0.7, 1.4, 2.0))
        where = tuple(sorted(weights))
        return self.scaled(Shape(where, tuple(weights[b] for b in where)))

    def scaled(self, shape: Shape) -> TokenSchedule | None:
        """The least reduction of this shape that keeps the budget; None when even the most does not."""
        top = max(shape.weights)

        def at(step: int) -> TokenSchedule:
            reach = [step / STEPS * weight / top for weight in shape.weights]
            if self.key == "r":
                amounts = tuple(float(round(share * self.vit.tokens)) for share in reach)
            else:
                amounts = tuple(max(0.001, round(1 - share, 3)) for share in reach)
            return replace(self.base, blocks=shape.blocks, amounts=amounts)

        low, high = 0, STEPS
        if self._count(at(high)).macs > self.budget:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._count(at(middle)).macs <= self.budget else (middle + 1, high)
        return at(low)

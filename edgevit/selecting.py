"""Choose output tokens: VitModel and a selector's schedule → ReducedModel. The blocks run on all tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from edgevit.errors import ScheduleError
from edgevit.reduce import count_macs, dense_cost
from edgevit.reduced_vit import ReducedBlock, Step
from edgevit.stages import ReducedModel, Tap, VitModel
from edgevit.tokens import method
from edgevit.tokens.counting import count_tokens
from edgevit.tokens.lowering import Lowering, take_rows
from edgevit.tokens.plans import prune
from edgevit.tokens.protocol import Tokens
from edgevit.tokens.schedule import TokenSchedule

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Plan, Selector

HEAD_TOLERANCE = 1e-5  # relative to the largest output; the same sums over other shapes differ by less than 1e-6


class Chooser(nn.Module):
    """A choice as a module, so that a trace knows which operators decide and move tokens."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, taps: list[Tap], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens `[B, N, C]` → the chosen `[pictures, K, C]`, and where they stood, `[pictures, K]`."""
        step = self.step
        selector = cast("type[Selector]", step.method)
        images = selector.images(step.schedule.options)
        batch, count, width = x.shape
        if batch % images:
            raise ScheduleError(
                f"{step.schedule} reads {images} images for one picture, got a batch of {batch}; pass --batch {images}"
            )
        index = selector.choose(taps, x, step.site(taps[-1], x, Tokens()))
        return take_rows(x.reshape(batch // images, images * count, width), index, step.lowering), index


class SelectingVit(nn.Module):
    """A vision encoder that returns some of its tokens: `[B, 3, H, W]` → `[pictures, K, C]`, without prefix tokens."""

    def __init__(self, vit: VitModel, step: Step) -> None:
        super().__init__()
        stage = vit.stages[0]
        self.stem, self.enter = vit.stem, stage.enter
        self.blocks = nn.ModuleList(
            ReducedBlock(cast(nn.Module, block), None, False) for block in stage.blocks[: step.block]
        )
        self.chooser = Chooser(step)
        self.head = vit.head if step.block == step.depth else None
        self.stages, self.steps = vit.stages, (*(None,) * (step.block - 1), step)
        selector = cast("type[Selector]", step.method)
        self.reads = selector.reads(step.depth, step.schedule.options)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` → the chosen tokens."""
        return self._chosen(images)[0]

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, list[Plan | None]]:
        """The outputs, and the choice as a plan behind the last block (for pictures); one image a picture."""
        x, index, count = self._chosen(images)
        step = self.chooser.step
        return x, [*(None,) * (step.block - 1), prune(index, count, step.lowering)]

    def _chosen(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        x = self.stem(images)
        if self.enter:
            x = self.enter(x)
        taps: list[Tap] = []
        for number, block in enumerate(self.blocks, 1):
            shown = number in self.reads
            x, _, _, tap = block(x, Tokens(), shown and self.chooser.step.method.probabilities)
            if shown:
                taps.append(tap)
        x, index = self.chooser(taps, x)
        return (x if self.head is None else self.head(x, None)), index, taps[-1].k.shape[2]


def select(vit: VitModel, schedule: TokenSchedule, lowering: Lowering) -> ReducedModel:
    """Apply a selector's schedule. Raises ScheduleError where the model's head cannot do with some of the tokens."""
    selector = cast("type[Selector]", method(schedule.method))
    stage = vit.stages[0]
    dense, fixed = dense_cost(vit)
    counts = count_tokens(schedule, vit.stages, 0)
    last, depth, out = len(counts.after), len(stage.blocks), counts.after[-1]
    tokens = _random_tokens(vit)
    if last == depth:
        _check_head(vit, tokens, selector.name)
    images = selector.images(schedule.options)
    fixed -= count_macs(lambda: vit.head(tokens, None))
    some = tokens[:, : -(-out // images)]
    head = count_macs(lambda: vit.head(some, None)) if last == depth else 0
    step = Step(
        schedule=schedule,
        prefix=stage.prefix,
        tokens_out=out,
        grid=stage.grid,
        block=last,
        depth=depth,
        lowering=lowering,
    )
    untouched = last == depth and out == stage.tokens and images == 1
    return ReducedModel(
        module=vit.module if untouched else SelectingVit(vit, step).eval(),
        original=vit.module,
        schedule=schedule,
        tokens=counts.after,
        dense_macs=dense,
        reduced_macs=counts.macs + fixed + head,
        notes=counts.notes,
        images=images,
    )


def _random_tokens(vit: VitModel) -> torch.Tensor:
    """`[1, N, C]` of noise, as wide as the encoder's tokens."""
    stage = vit.stages[0]
    with torch.no_grad():
        x = vit.stem(torch.zeros(1, 3, *vit.image_size))
        width = (stage.enter(x) if stage.enter else x).shape[2]
    return torch.randn(1, stage.tokens, width, generator=torch.Generator().manual_seed(0))


def _check_head(vit: VitModel, tokens: torch.Tensor, name: str) -> None:
    """Prove that the head maps each token alone, so that it can be given the chosen ones."""
    way_out = "layer=-2 returns the tokens behind the last block but one, without the head"
    if vit.pooling != "none":
        raise ScheduleError(
            f"{name} returns tokens, and this model pools them ({vit.pooling}); load the encoder without pooling, or "
            f"{way_out}"
        )
    some = list(range(0, tokens.shape[1], 2))
    with torch.no_grad():
        try:
            whole, part = vit.head(tokens, None), vit.head(tokens[:, some], None)
            error = (whole[:, some] - part).abs().max() / whole.abs().max().clamp_min(1e-12)
            alone = whole.ndim == 3 and float(error) <= HEAD_TOLERANCE
        except (RuntimeError, ValueError, IndexError, TypeError):
            alone = False
    if not alone:
        raise ScheduleError(f"{name} returns some tokens, and this model's head needs all of them; {way_out}")

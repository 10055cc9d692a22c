"""What methods share that choose among a vision encoder's output tokens, for a language model that reads them.

All tokens run through the blocks; then a constant number of patches is returned, in raster order, without the prefix
tokens. `layer=-1` (default): the encoder's own output, its final norm and head applied to the chosen tokens alone.
`layer=-2`: the tokens behind the last block but one, as LLaVA reads them (`hidden_states[-2]`): the blocks behind are
not run, and neither the final norm nor the head is applied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import torch

from edgevit.errors import ScheduleError
from edgevit.tokens import method
from edgevit.tokens.base import Reduction, kept
from edgevit.tokens.lowering import ascending
from edgevit.tokens.macs import block_macs

if TYPE_CHECKING:
    from edgevit.stages import Stage, Tap, VitModel
    from edgevit.tokens.counting import Counts
    from edgevit.tokens.protocol import Selector, Site
    from edgevit.tokens.schedule import TokenSchedule


class OutputSelector(Reduction):
    """Base of a selector (`protocol.Selector`): a count or a share of the patches, read behind `layer`."""

    keys: ClassVar[Mapping[str, str]] = {
        "tokens": "visual tokens that are returned",
        "keep": "share of the patches that are returned, above 0 and at most 1",
    }
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"layer": ()}
    selector: ClassVar[bool] = True
    no_search: ClassVar[str | None] = "chooses among the outputs: give tokens= or keep="
    merges: ClassVar[bool] = False

    @classmethod
    def check_model(cls, vit: VitModel, restoring: bool) -> str | None:
        """One sequence of tokens, with a class token where it is read. Token outputs are what it is for."""
        stage = vit.stages[0]
        if len(vit.stages) > 1 or stage.groups > 1 or stage.leave is not None:
            return (
                f"{cls.name} chooses among the output tokens of one sequence, and {vit.family} has windows, several "
                "stages or a map behind its blocks"
            )
        if cls.needs_class_token and not vit.class_token:
            return (
                f"{cls.name} scores patches by the class token's attention, and this model has no class token; use "
                "hiprune, fopru or todre"
            )
        return None

    @staticmethod
    def default_blocks(depth: int) -> tuple[int, ...]:
        """Behind the last block; `layer=` is the way to another."""
        return (depth,)

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """`tokens` is a whole number, `keep` a share."""
        if key == "tokens" and (value < 1 or value != int(value)):
            return f"tokens={value:g} must be a whole number of tokens, 1 or more"
        return Reduction.check_amount(key, value)

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """`layer` counts from the end."""
        return whole_number(name, value, from_end=True) if name == "layer" else None

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """Patches alone, never more than there are.

        >>> OutputSelector.tokens_after(577, 1, "tokens", 128), OutputSelector.tokens_after(577, 1, "keep", 0.25)
        (128, 144)
        """
        patches = tokens - prefix
        return min(int(value), patches) if key == "tokens" else kept(patches, value)

    @staticmethod
    def budget_grid(tokens: int) -> tuple[str, tuple[float, ...]]:
        """Nothing to solve: the blocks cost the same for any number of tokens returned."""
        return "keep", (1.0,)

    @staticmethod
    def images(options: Mapping[str, str]) -> int:
        """Images of one picture, of which the tokens are returned together."""
        return 1

    @classmethod
    def returned(cls, key: str, value: float, grid: tuple[int, int], options: Mapping[str, str]) -> int:
        """Tokens returned for one picture. Raises ScheduleError where it has not so many."""
        patches = grid[0] * grid[1] * cls.images(options)
        if key == "tokens" and value > patches:
            raise ScheduleError(
                f"{cls.name}: tokens={value:g} is more than the {patches} patches; give {patches} or less"
            )
        return cls.tokens_after(patches, 0, key, value)

    @staticmethod
    def reads(depth: int, options: Mapping[str, str]) -> tuple[int, ...]:
        """The last block that is run."""
        return (last_block(depth, options),)

    @classmethod
    def choose(cls, taps: Sequence[Tap], tokens: torch.Tensor, site: Site) -> torch.Tensor:
        """The patches with the largest scores, in raster order."""
        return best(cls.scores(taps, tokens, site), site)

    @staticmethod
    def scores(taps: Sequence[Tap], tokens: torch.Tensor, site: Site) -> torch.Tensor:
        """`[B, N - P]` float32: what each patch is worth."""
        raise NotImplementedError


def best(scores: torch.Tensor, site: Site) -> torch.Tensor:
    """The `tokens_out` best of the patches, scores `[B, N - P]` → `[B, K]` int64, rising, the prefix counted."""
    return ascending(scores.topk(site.tokens_out, dim=-1).indices) + site.prefix


def last_block(depth: int, options: Mapping[str, str]) -> int:
    """The block (from 1) behind which tokens are read.

    >>> last_block(24, {}), last_block(24, {"layer": "-2"})
    (24, 23)
    """
    return depth + 1 + int(options.get("layer", "-1"))


def whole_number(name: str, value: str, from_end: bool = False) -> str | None:
    """Why an option is not a count from 1, or from the end (-1, -2, ...); None when it is."""
    if re.fullmatch("-[1-9][0-9]*" if from_end else "[1-9][0-9]*", value):
        return None
    return f"{name}={value} must be {'a whole number below 0: -1 is the last' if from_end else 'a whole number from 1'}"


def share(name: str, value: str) -> str | None:
    """Why an option is not a share, 0 and 1 included; None when it is."""
    if re.fullmatch(r"[0-9]*\.?[0-9]+", value) and float(value) <= 1:
        return None
    return f"{name}={value} must be a number from 0 to 1"


def block_option(name: str, default: int, last: int, options: Mapping[str, str]) -> int:
    """A block (from 1) that an option names. Raises ScheduleError when it is not run."""
    number = int(options.get(name, default))
    if number > last:
        raise ScheduleError(f"{name}={number} must be one of the blocks 1 to {last}, which the choice may read")
    return number


def count_selected(schedule: TokenSchedule, stages: Sequence[Stage], fixed_macs: int) -> Counts:
    """Counts of a selector: every block that is run sees all tokens, the last one returns the chosen.

    Raises ScheduleError.
    """
    from edgevit.tokens.counting import Counts

    cls = cast("type[Selector]", method(schedule.method))
    stage = stages[0]
    depth, now = len(stage.blocks), stage.tokens
    if schedule.blocks or schedule.until:
        raise ScheduleError(
            f"{schedule}: {cls.name} chooses among the output tokens, so it takes neither @ nor until=; layer=-2 reads "
            "the last block but one"
        )
    if schedule.key not in cls.keys:
        raise ScheduleError(
            f"{schedule}: {cls.name} chooses behind the blocks, so it cannot cut their MACs; give tokens= or keep="
        )
    last = last_block(depth, schedule.options)
    if last < 1:
        raise ScheduleError(f"{schedule}: the model has {depth} blocks, so layer= goes from -1 to -{depth}")
    cls.reads(depth, schedule.options)  # raises for a block that is not run
    out = cls.returned(schedule.key, schedule.amounts[0], stage.grid, schedule.options)
    macs = fixed_macs + sum(block_macs(block, now, now) for block in stage.blocks[:last])
    notes: tuple[str, ...] = ()
    if last < depth:
        notes = (f"{depth - last} of {depth} blocks are not run, and neither final norm nor head is applied (layer=)",)
    return Counts(schedule, (now,) * last, (*(now,) * (last - 1), out), macs, notes)

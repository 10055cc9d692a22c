"""What travels beside the tokens, what a reduction method sees and must offer, and the plan it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgevit.stages import Tap, VitModel
    from edgevit.tokens.counting import Counts
    from edgevit.tokens.lowering import Lowering

Placement = Literal["mid", "early", "post", "front"]
"""Where a method's plan is applied: behind the attention residual; inside the attention, before its output (queries
and keys saw all tokens); behind the whole block; in front of it."""


class Tokens(NamedTuple):
    """What travels beside the stream `[B, N, C]`.

    size: `[B, N]`, original patches that each token stands for; None: one each.
    place: `[B, N]` int64, the position (prefix included) that each token keeps in positional models; None: its own.
    """

    size: torch.Tensor | None = None
    place: torch.Tensor | None = None


@dataclass(frozen=True)
class Site:
    """One reduction point: everything a decision may read, most of it Python numbers.

    tap: for "front" the block's input as the only head, since queries and keys do not exist yet.
    x: `[B, N, C]`, the tokens that the plan will be applied to first (for "early" and "front": the block's input).
    prefix: protected tokens in front. grid: patches (down, across) before any reduction. tokens_out: N'.
    block: 1-based number of the block, of `depth`. ordinal: 0-based number of this block among the schedule's, of
    `points` (a block where nothing is removed counts, and has no site).
    trained: the modules that a trained method's checkpoint brought, or None.
    """

    tap: Tap
    x: torch.Tensor
    size: torch.Tensor | None
    prefix: int
    tokens_out: int
    grid: tuple[int, int] = (0, 0)
    block: int = 1
    depth: int = 1
    ordinal: int = 0
    points: int = 1
    options: Mapping[str, str] = field(default_factory=dict)
    lowering: Lowering = "gather"
    trained: nn.Module | None = None


class Plan(Protocol):
    """One decision about one block's tokens: made once, applied to any tensor. All of it traces to static operators."""

    def apply(self, x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[B, N, C]`, sizes `[B, N]` or None (all one) → `[B, N', C]`, `[B, N']` or None."""

    def source(self) -> torch.Tensor:
        """`[B, N']` int64: the input token whose position each output token keeps."""

    def slots(self) -> torch.Tensor:
        """`[B, N]` int64: the output slot each input token went to."""

    def dropped(self) -> torch.Tensor:
        """`[B, N]` bool: true for a token that is pruned (or fused into a remainder) rather than kept or merged."""

    def restore(self, y: torch.Tensor) -> torch.Tensor | None:
        """`[B, N', C]` → `[B, N, C]` in the method's own way; None: every token takes its slot's row."""


class MixingPlan(Plan, Protocol):
    """A plan with placement "early": it also says what becomes of the attention probabilities."""

    def mix(self, probabilities: torch.Tensor) -> torch.Tensor:
        """`[B, H, N, N]` → `[B, H, N', N']`, rows summing to one."""


class Method(Protocol):
    """A reduction method: counting on Python ints, deciding on tensors. `tokens/base.py` has the common answers.

    keys: schedule keys that hold one amount per block, with their meaning (exactly one is given).
    options: other schedule keys with their allowed values, the default first; no values: `check_option` decides.
    """

    name: ClassVar[str]
    keys: ClassVar[Mapping[str, str]]
    options: ClassVar[Mapping[str, tuple[str, ...]]]
    placement: ClassVar[Placement]
    probabilities: ClassVar[bool]
    """The plan reads `tap.probabilities`: attention is computed explicitly in the blocks that reduce."""
    needs_class_token: ClassVar[bool]
    """It reads the class token's row of the attention."""
    merges: ClassVar[bool]
    """Every token lives on in a slot, so all can be restored."""
    selector: ClassVar[bool]
    """Chooses among the output tokens (`tokens/selector.py`) instead of reducing inside."""
    architecture: ClassVar[bool]
    """Is a setting of a trained architecture (`trained/rebuild.py`) instead of a step between its parts."""
    no_search: ClassVar[str | None]
    """Why `auto` cannot place it, or None."""

    @staticmethod
    def check_model(vit: VitModel, restoring: bool) -> str | None:
        """Why this method cannot run on a model, or None. restoring: all tokens must come back."""

    @classmethod
    def wants(cls) -> tuple[str, ...]:
        """What a model or target must offer, in words."""

    @staticmethod
    def default_blocks(depth: int) -> tuple[int, ...]:
        """Blocks (from 1) where a schedule without `@` reduces."""

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """Why an amount is out of range, or None."""

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """Why a free-form option is wrong, or None."""

    @staticmethod
    def check_together(key: str, amounts: Sequence[float], options: Mapping[str, str]) -> str | None:
        """Why amounts and options, each fine alone, do not fit together, or None."""

    @classmethod
    def check_counts(cls, counts: Counts, vit: VitModel) -> str | None:
        """Why the counts that a schedule gives on a model do not suit this method, or None."""

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """Tokens behind a block that saw `tokens`, of which `prefix` are protected."""

    @classmethod
    def tokens_at(cls, entered: int, tokens: int, prefix: int, key: str, amounts: Sequence[float]) -> int:
        """The same for the last of the points so far. entered: tokens of the stage; amounts: of its points so far."""

    @staticmethod
    def budget_grid(tokens: int) -> tuple[str, tuple[float, ...]]:
        """For `flops=`: the key and its amounts, from least to most reduction."""

    @staticmethod
    def plan(site: Site) -> Plan:
        """Decide which tokens stay and which merge, for one block."""

    @classmethod
    def tracks_size(cls, options: Mapping[str, str]) -> bool:
        """Whether later attention adds log(size) to its logits (proportional attention)."""


class Selector(Method, Protocol):
    """A method that chooses output tokens, for vision encoders whose tokens go into a language model."""

    @staticmethod
    def images(options: Mapping[str, str]) -> int:
        """Images of one picture, whose tokens are returned together: the batch is `[pictures * images, 3, H, W]`."""

    @staticmethod
    def returned(key: str, value: float, grid: tuple[int, int], options: Mapping[str, str]) -> int:
        """K, the tokens returned for one picture. Raises ScheduleError where it has not so many."""

    @staticmethod
    def reads(depth: int, options: Mapping[str, str]) -> tuple[int, ...]:
        """Blocks (from 1, rising) whose taps `choose` wants. Raises ScheduleError for one that is not run."""

    @staticmethod
    def choose(taps: Sequence[Tap], tokens: torch.Tensor, site: Site) -> torch.Tensor:
        """`[pictures, K]` int64, rising: the tokens (prefix counted) of a picture that are returned.

        tokens: `[B, N, C]`, behind the last block that is run; a picture's images lie end to end.
        """

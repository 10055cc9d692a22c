"""The answers most reduction methods share; a method overrides what is its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from edgevit.stages import VitModel
    from edgevit.tokens.counting import Counts
    from edgevit.tokens.protocol import Placement


COUNT_OR_SHARE = {
    "r": "tokens removed in the block",
    "keep": "share of the patches that stay, above 0 and at most 1",
}
SHARE_OR_COUNT = dict(reversed(COUNT_OR_SHARE.items()))


class Reduction:
    """Base of a method.

    needs_class_token: it reads the class token's attention. patch_pooling: its tokens may be pooled over.
    merges: every token lives on in a slot, so all can be restored. positions: each output token has one.
    weights: what it needs of a trained checkpoint, as it is called in `VitModel.trained`.
    """

    name: ClassVar[str]
    keys: ClassVar[Mapping[str, str]] = COUNT_OR_SHARE
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    placement: ClassVar[Placement] = "mid"
    probabilities: ClassVar[bool] = False
    selector: ClassVar[bool] = False
    architecture: ClassVar[bool] = False
    no_search: ClassVar[str | None] = None
    needs_class_token: ClassVar[bool] = False
    patch_pooling: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    positions: ClassVar[bool] = True
    weights: ClassVar[str | None] = None

    @classmethod
    def check_model(cls, vit: VitModel, restoring: bool) -> str | None:
        """The reasons that follow from what a method reads and leaves."""
        if cls.weights and cls.weights not in vit.trained:
            return f"{cls.name} needs its trained weights: load its checkpoint with --arch {cls.weights}:NAME"
        if cls.needs_class_token and not vit.class_token:
            return (
                f"{cls.name} scores patches by the class token's attention, and this model has no class token where "
                "tokens can be reduced; use tome"
            )
        if restoring and not cls.merges:
            return (
                f"{cls.name} drops tokens for good, and this model needs every token back (a map, windows or token "
                "outputs); use a merging method such as tome"
            )
        if not cls.patch_pooling and vit.pooling not in ("token", "none"):
            return (
                f"{cls.name} leaves one fused token among the patches, and this model pools over patches "
                f"({vit.pooling}), which would count it as one; use tome"
            )
        if not cls.positions and vit.positional:
            return f"{cls.name} mixes tokens that have no single position, and this model's attention reads positions"
        return None

    @classmethod
    def wants(cls) -> tuple[str, ...]:
        """What a model or target must offer, in words, for `edgevit methods`."""
        said = {
            "a class token": cls.needs_class_token,
            "token outputs": cls.selector,
            "explicit attention in the blocks it reads": cls.probabilities,
            "queries and keys apart from values": cls.placement == "early",
            f"its trained checkpoint (--arch {cls.weights}:NAME)": bool(cls.weights),
            "no map to restore": not cls.merges and not cls.selector,
            "no relative or rotary positions": not cls.positions,
        }
        return tuple(text for text, needed in said.items() if needed)

    @staticmethod
    def default_blocks(depth: int) -> tuple[int, ...]:
        """Every block."""
        return tuple(range(1, depth + 1))

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """`r` is a whole number of tokens, `keep` a share."""
        if key == "r" and (value < 0 or value != int(value)):
            return f"r={value:g} must be a whole number of tokens, 0 or more"
        if key == "keep" and not 0 < value <= 1:
            return f"keep={value:g} must be above 0 and at most 1 (0.7 keeps 70 %)"
        return None

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """No free-form options."""
        return None

    @staticmethod
    def check_together(key: str, amounts: Sequence[float], options: Mapping[str, str]) -> str | None:
        """Options do not depend on amounts."""
        return None

    @classmethod
    def check_counts(cls, counts: Counts, vit: VitModel) -> str | None:
        """Any counts will do."""
        return None

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """Any number of patches down to one may go.

        >>> Reduction.tokens_after(197, 1, "r", 8), Reduction.tokens_after(197, 1, "keep", 0.7)
        (189, 139)
        """
        if key == "r":
            return max(tokens - int(value), min(prefix + 1, tokens))
        return prefix + kept(tokens - prefix, value)

    @classmethod
    def tokens_at(cls, entered: int, tokens: int, prefix: int, key: str, amounts: Sequence[float]) -> int:
        """Each point counts from the tokens it sees."""
        return cls.tokens_after(tokens, prefix, key, amounts[-1])

    @staticmethod
    def budget_grid(tokens: int) -> tuple[str, tuple[float, ...]]:
        """R from 0 to all tokens."""
        return "r", tuple(float(r) for r in range(tokens))

    @classmethod
    def tracks_size(cls, options: Mapping[str, str]) -> bool:
        """As `prop=` says, or its default; never for a method without that option."""
        offered = cls.options.get("prop")
        return offered is not None and options.get("prop", offered[0]) == "on"


class Bipartite(Reduction):
    """Methods that merge one half of the patches into the other: at most half can go at once.

    `prop=off` leaves proportional attention out, for self-supervised weights used off the shelf (ToMe, section 4.2).
    """

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"prop": ("on", "off")}

    @staticmethod
    def tokens_after(tokens: int, prefix: int, key: str, value: float) -> int:
        """At most half of the patches can merge: every pair has one end in each half.

        >>> Bipartite.tokens_after(197, 1, "r", 8)
        189
        >>> Bipartite.tokens_after(21, 1, "r", 16), Bipartite.tokens_after(21, 1, "keep", 0.1)
        (11, 11)
        """
        return max(Reduction.tokens_after(tokens, prefix, key, value), tokens - (tokens - prefix) // 2)

    @staticmethod
    def budget_grid(tokens: int) -> tuple[str, tuple[float, ...]]:
        """R from 0 to half the tokens."""
        return "r", tuple(float(r) for r in range(tokens // 2 + 1))


class ByShare(Reduction):
    """Methods that keep a share of the patches at few points; `flops=` is solved in thousandths of it."""

    keys: ClassVar[Mapping[str, str]] = SHARE_OR_COUNT

    @staticmethod
    def default_blocks(depth: int) -> tuple[int, ...]:
        """Behind each quarter of the depth but the last: 4, 7 and 10 of 12, as in EViT."""
        return quarters(depth)

    @staticmethod
    def budget_grid(tokens: int) -> tuple[str, tuple[float, ...]]:
        """Keep rates in steps of a thousandth."""
        return "keep", tuple(k / 1000 for k in range(1000, 0, -1))


def kept(patches: int, share: float) -> int:
    """`ceil(share · patches)`, at least one, free of binary rounding.

    >>> kept(10, 0.7)
    7
    """
    return max(1, math.ceil(round(share * patches, 9))) if patches else 0


def quarters(depth: int) -> tuple[int, ...]:
    """Behind each quarter of the depth but the last: 4, 7 and 10 of 12.

    >>> quarters(12)
    (4, 7, 10)
    """
    return tuple(sorted({depth * quarter // 4 + 1 for quarter in (1, 2, 3)}))

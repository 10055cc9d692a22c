"""What may be chosen, as one table, and a choice as what `edgevit export` is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgevit.errors import EdgeVitError
from edgevit.tokens.schedule import TokenSchedule, parse_schedule

if TYPE_CHECKING:
    from edgevit.runtimes.base import Runtime
    from edgevit.stages import VitModel

METHODS = ("tome", "pitome", "tofu", "evit", "diffrate")
"""Methods of both kinds that need no training, with few operators; those that do not fit the model drop out."""
MACS = (0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
"""Multiply-accumulates that are left, as a share of dense; the method's own amounts are solved for it."""
PLACES: Mapping[str, tuple[float, ...]] = {
    "own": (),
    "two": (1 / 3, 2 / 3),
    "two early": (1 / 4, 1 / 2),
    "two late": (1 / 2, 3 / 4),
    "three": (1 / 4, 1 / 2, 3 / 4),
    "four": (1 / 5, 2 / 5, 3 / 5, 4 / 5),
}
"""Where tokens go, as shares of the depth; `own`: the method's own blocks."""
OPTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {"web": {"backend": ("auto", "wasm")}}
"""Options of a target that change its speed: target → option → values."""
FIRST_MACS, FIRST_PLACE = 0.75, "two"
"""The first reduced choice of each method: a moderate cut at two points, which keeps most of the MACs it saves."""


@dataclass(frozen=True)
class Point:
    """One choice. reduce: a schedule's text."""

    reduce: str
    precision: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_dense(self) -> bool:
        """Whether every token stays."""
        return self.reduce == "none"

    def __str__(self) -> str:
        return " ".join([self.reduce, self.precision, *(f"{k}={v}" for k, v in self.options.items())])


@dataclass(frozen=True)
class Space:
    """The choices of one model on one target.

    precisions: the target's default, its int8, its float ones (together the `opening`), then the rest.
    left_out: what the table has and this model or machine has not, why.
    """

    methods: tuple[str, ...]
    precisions: tuple[str, ...]
    opening: int
    options: Mapping[str, tuple[str, ...]]
    depth: int
    left_out: Mapping[str, str]

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Parameter → its values."""
        table: dict[str, tuple[Any, ...]] = {
            "method": ("none", *self.methods),
            "place": tuple(PLACES),
            "macs": MACS,
            "precision": self.precisions,
        }
        return {**table, **{f"option {name}": values for name, values in self.options.items()}}

    def dense(self, precision: str) -> dict[str, Any]:
        """The parameters of every token kept."""
        return self._filled({"method": "none", "precision": precision})

    def first(self, method: str, precision: str) -> dict[str, Any]:
        """The parameters a method is tried with first."""
        return self._filled({"method": method, "precision": precision, "macs": FIRST_MACS, "place": FIRST_PLACE})

    def _filled(self, params: dict[str, Any]) -> dict[str, Any]:
        return {**params, **{f"option {name}": values[0] for name, values in self.options.items()}}

    def point(self, params: Mapping[str, Any]) -> Point:
        """What the parameters mean."""
        options = {name: params[f"option {name}"] for name in self.options}
        if params["method"] == "none":
            return Point("none", params["precision"], options)
        blocks = sorted({max(1, round(share * self.depth)) for share in PLACES[params["place"]]})
        where = f"@{','.join(map(str, blocks))}" if blocks else ""
        return Point(f"{params['method']}:flops={params['macs']:g}{where}", params["precision"], options)


def space(vit: VitModel | None, why_not: str, target: Runtime) -> Space:
    """The table, less what does not fit. vit: None where no adapter knows the model; why_not says so."""
    left_out: dict[str, str] = {}
    methods: tuple[str, ...] = ()
    if vit is None:
        left_out["token reduction"] = why_not
    else:
        for name in METHODS:
            wrong = _misfit(vit, parse_schedule(f"{name}:keep=0.9"))
            if wrong:
                left_out[name] = wrong
        methods = tuple(name for name in METHODS if name not in left_out)
    policy, precisions = target.policy, dict[str, bool]()
    default, *others = policy.precisions
    for name in (default, *sorted(others, key=lambda p: (p != "int8", policy.quantizes(p) is not None))):
        reason = target.runs_here(name) if name in policy.elsewhere else None  # it could be built, but not judged
        if name.startswith("int8+") and (own := target.resolve("int8")) not in ("int8", name):
            reason = f"int8 is {own} on this machine"
        if reason:
            left_out[name] = reason
            continue
        try:
            precisions.setdefault(target.resolve(name), name in (default, "int8") or policy.quantizes(name) is None)
        except EdgeVitError as error:
            left_out[name] = str(error)
    options, depth = OPTIONS.get(target.name, {}), len(vit.blocks) if vit else 0
    return Space(methods, tuple(precisions), sum(precisions.values()), options, depth, left_out)


def _misfit(vit: VitModel, schedule: TokenSchedule) -> str | None:
    """Why a method cannot reduce a model at all."""
    from edgevit.reduce import reduce

    try:
        reduce(vit, schedule)
    except EdgeVitError as error:
        return str(error)
    return None

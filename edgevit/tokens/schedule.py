"""Token schedules: the text a user types, the frozen object, the counts it gives on a model.

SPEC := none | METHOD:key=value[,key=value...][@BLOCKS] | FILE.json
    tome:r=8                    the method's own blocks (ToMe: every block)
    tome:r=24@3,6,9,11          the same amount at these blocks (from 1)
    tome:r=60/40@5,9            amounts paired with blocks
    evit:keep=0.7@4,7,10
    tome:flops=0.65@5,9         the least reduction of the method's grid with reduced MACs <= 0.65 x dense
    tome:auto,flops=0.65        searched on calibration images (edgevit.search); points=3 limits where, seed= repeats
    tome:r=60,until=10@3        every token comes back behind block 10 (merge, run, unmerge)
    tome:r=60,scope=attention   only the attention product sees merged tokens; the stream keeps all
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import ScheduleError
from edgevit.names import did_you_mean
from edgevit.stages import Stage
from edgevit.tokens import method
from edgevit.tokens.macs import block_macs

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Method


@dataclass(frozen=True)
class TokenSchedule:
    """What to reduce where. `amounts[i]` belongs to block `blocks[i]` (from 1)."""

    method: str = "none"
    key: str = ""
    amounts: tuple[float, ...] = ()
    blocks: tuple[int, ...] = ()  # empty: the method's default blocks
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def none(cls) -> TokenSchedule:
        """No reduction: the identity setting."""
        return cls()

    @property
    def until(self) -> int | None:
        """The block behind which all tokens come back, if the schedule names one."""
        return int(self.options["until"]) if "until" in self.options else None

    @property
    def attention_only(self) -> bool:
        """Whether queries, keys and values are merged inside the attention, and the stream keeps its tokens."""
        return self.options.get("scope") == "attention"

    @property
    def is_none(self) -> bool:
        """True for the identity."""
        return self.method == "none"

    @property
    def is_auto(self) -> bool:
        """True when calibration images must still decide (`edgevit.search`)."""
        return self.key == "auto"

    def __hash__(self) -> int:
        """Options included."""
        return hash((self.method, self.key, self.amounts, self.blocks, tuple(sorted(self.options.items()))))

    def __str__(self) -> str:
        """The spec text; parsing it gives this schedule again."""
        if self.is_none:
            return "none"
        key = "auto,flops" if self.is_auto else self.key
        values = [f"{key}={'/'.join(map(_text, self.amounts))}"]
        values += [f"{k}={v}" for k, v in self.options.items()]
        where = f"@{','.join(map(str, self.blocks))}" if self.blocks else ""
        return f"{self.method}:{','.join(values)}{where}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "method": self.method,
            "key": self.key,
            "amounts": list(self.amounts),
            "blocks": list(self.blocks),
            "options": dict(self.options),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenSchedule:
        """Read the JSON form."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ScheduleError(f"schedule has unknown keys {unknown}; known: {list(cls.__dataclass_fields__)}")
        try:
            schedule = cls(
                method=str(values["method"]),
                key=str(values.get("key", "")),
                amounts=tuple(float(a) for a in _items(values, "amounts", (int, float))),
                blocks=tuple(_items(values, "blocks", (int,))),
                options={str(k): str(v) for k, v in dict(values.get("options", {})).items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ScheduleError(f"schedule is not complete: {error!r}; expected {TokenSchedule().to_dict()}") from error
        return _checked(schedule)


def _items(values: Mapping[str, Any], key: str, kinds: tuple[type, ...]) -> list[Any]:
    items = values.get(key, [])
    wrong = [i for i in items if type(i) not in kinds] if isinstance(items, list | tuple) else [items]
    if wrong:
        raise TypeError(f"{key} must be a list of numbers, got {wrong[0]!r}")
    return list(items)


def _text(amount: float) -> str:
    """An amount as one types it, exactly.

    >>> _text(8.0), _text(0.7)
    ('8', '0.7')
    """
    return str(int(amount)) if math.isfinite(amount) and amount == int(amount) else repr(amount)


def parse_schedule(spec: str) -> TokenSchedule:
    """Parse a SPEC (grammar in the module docstring).

    >>> parse_schedule("tome:r=60/40@5,9").amounts
    (60.0, 40.0)
    >>> str(parse_schedule("evit:keep=0.7"))
    'evit:keep=0.7'
    """
    if spec == "none":
        return TokenSchedule.none()
    if spec.endswith(".json"):
        return _read(Path(spec))
    name, colon, rest = spec.partition(":")
    cls = method(name)
    if not colon or not rest:
        raise ScheduleError(f"{spec!r} gives {name} no amount; write for example {name}:{next(iter(cls.keys))}=...")
    values, at, where = rest.partition("@")
    auto = values == "auto" or values.startswith("auto,")
    blocks = tuple(_number(b, int, f"block in {spec!r}") for b in where.split(",")) if at else ()
    amounts: tuple[float, ...] = ()
    key, options = "", {}
    for pair in values.split(",")[auto:]:
        k, eq, v = pair.partition("=")
        if not eq or not v:
            raise ScheduleError(f"{pair!r} in {spec!r} is not key=value")
        if k in cls.keys or k == "flops":
            if key:
                raise ScheduleError(f"{spec!r} gives both {key}= and {k}=; give one")
            key, amounts = k, tuple(_number(a, float, f"{k} in {spec!r}") for a in v.split("/"))
        elif k in options:
            raise ScheduleError(f"{spec!r} gives {k}= twice; give one")
        else:
            options[k] = v
    if auto and key != "flops":
        raise ScheduleError(f"{spec!r}: a searched schedule needs a budget; write {name}:auto,flops=0.65")
    return _checked(TokenSchedule(name, "auto" if auto else key, amounts, blocks, options))


def _read(path: Path) -> TokenSchedule:
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ScheduleError(f"cannot read schedule file {path}: {error.strerror}") from error
    except ValueError as error:
        raise ScheduleError(f"schedule file {path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ScheduleError(f"schedule file {path} must hold a JSON object, got {type(values).__name__}")
    return TokenSchedule.from_dict(values)


def _number(text: str, kind: type[Any], what: str) -> Any:
    try:
        value = kind(text)
    except ValueError as error:
        raise ScheduleError(f"{text!r} is not a number ({what})") from error
    if not math.isfinite(value):
        raise ScheduleError(f"{text!r} is not a number ({what})")
    return value


def _checked(schedule: TokenSchedule) -> TokenSchedule:
    """Everything that can be said without a model."""
    if schedule.is_none:
        return schedule
    cls = method(schedule.method)
    known = [*cls.keys, "flops"]
    if schedule.is_auto and (cls.no_search or schedule.blocks):
        raise ScheduleError(f"{schedule}: {schedule.method}:auto {cls.no_search or 'searches its blocks: drop @'}")
    if schedule.key not in known and not schedule.is_auto:
        raise ScheduleError(f"{schedule.method} needs one of {', '.join(f'{k}=' for k in known)}")
    if not schedule.amounts:
        raise ScheduleError(f"the schedule gives {schedule.method} no amount; write for example {schedule.key}=...")
    for name, value in schedule.options.items():
        wrong = _option_wrong(cls, name, value, schedule.is_auto)
        if wrong:
            raise ScheduleError(wrong)
    for amount in schedule.amounts:
        if not math.isfinite(amount):
            raise ScheduleError(f"{schedule}: {amount} is not a number that {schedule.key}= can take")
        wrong = _flops_wrong(amount) if schedule.key in ("flops", "auto") else cls.check_amount(schedule.key, amount)
        if wrong:
            raise ScheduleError(f"{schedule}: {wrong}")
    apart = cls.check_together(schedule.key, schedule.amounts, schedule.options)
    if apart:
        raise ScheduleError(f"{schedule}: {apart}")
    if schedule.attention_only and schedule.until:
        raise ScheduleError(f"{schedule}: scope=attention keeps every token, so until= has nothing to bring back")
    if list(schedule.blocks) != sorted(set(schedule.blocks)) or any(b < 1 for b in schedule.blocks):
        raise ScheduleError(f"{schedule}: blocks count from 1 and must rise, got {list(schedule.blocks)}")
    if len(schedule.amounts) > 1 and schedule.key in ("flops", "auto"):
        raise ScheduleError(f"{schedule}: flops= takes one number")
    if len(schedule.amounts) > 1 and len(schedule.amounts) != len(schedule.blocks) and not cls.architecture:
        raise ScheduleError(
            f"{schedule}: {len(schedule.amounts)} amounts for {len(schedule.blocks)} blocks; give one, or one per block"
        )
    return schedule


def _option_wrong(cls: type[Method], name: str, value: str, auto: bool) -> str | None:
    if auto and name in ("points", "seed"):
        fits = value.isdecimal() and (int(value) > 0 or name == "seed")
        return None if fits else f"{name}={value} must be a whole number, {'1' if name == 'points' else '0'} or more"
    if name == "until":
        return None if value.isdecimal() and int(value) > 0 else f"until={value} must be the number of a block, from 1"
    if name == "scope":
        if value != "attention":
            return f"scope={value}: the only scope is attention; without it a schedule reduces the stream"
        fits = cls.merges and cls.placement == "mid" and not cls.probabilities and not cls.selector
        return None if fits else f"{cls.name} cannot stand inside the attention (scope=); tome and its like can"
    if name not in cls.options:
        every = [*cls.keys, "flops", *cls.options, "until", "scope"]
        return f"{cls.name} has no key {name!r}{did_you_mean(name, every)}; it has {', '.join(every)}"
    if cls.options[name] and value not in cls.options[name]:
        return f"{name}={value}: {cls.name} takes {' or '.join(cls.options[name])}"
    return None if cls.options[name] else cls.check_option(name, value)


def _flops_wrong(value: float) -> str | None:
    return None if 0 < value <= 1 else f"flops={value:g} is a share of the dense MACs, above 0 and at most 1"


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

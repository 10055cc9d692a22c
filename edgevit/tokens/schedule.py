"""Token schedules: the text a user types, and the frozen object. What it gives on a model: `tokens/counting.py`.

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import ScheduleError
from edgevit.names import did_you_mean
from edgevit.tokens import method

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

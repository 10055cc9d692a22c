"""Rotary positions between a Linear and an attention: found by what they do to numbers, however they are written.

Where more than one path leads from one value `[1, H, N, d]` to the next that every path leads through, it may be
y = x · cos + swap(x) · sin. Two probes, each of one member of every pair, read cos and sin; a third proves them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from edgevit.adapters.rotation import Rotation, swap
from edgevit.from_onnx.program import compute

if TYPE_CHECKING:
    from edgevit.from_onnx.dataflow import Dataflow

EXACT = 1e-6  # relative: the file's tables are float32
RANK = 4  # [1, H, N, d]


class Turned(NamedTuple):
    """A rotation between two values of a file."""

    before: str
    after: str
    rotation: Rotation


def rotation(flow: Dataflow, start: str, steps: list[Any], end: str) -> Turned | None:
    """The rotation among the steps from value `start` to value `end`, or None. steps: in order."""
    cuts = [start, *_cuts(flow, start, steps, end)]
    for before, after in pairwise(cuts):
        inner = _between(flow, before, after, steps)
        shape = flow.shapes[after]
        if len(inner) < 2 or len(shape) != RANK or flow.shapes[before] != shape or shape[-1] % 2:
            continue
        for half in (True, False):
            tables = _tables(flow, before, after, inner, half)
            if tables is not None:
                return Turned(before, after, Rotation(*tables, half))
    return None


def _cuts(flow: Dataflow, start: str, steps: list[Any], end: str) -> list[str]:
    """The values that every path from start to end leads through, in order."""
    into, onward = {start: 1}, {end: 1}
    for step in steps:
        total = sum(into.get(name, 0) for name in flow.tensors(step))
        into.update({name: total for name in step.node.output if name})
    for step in reversed(steps):
        total = sum(onward.get(name, 0) for name in step.node.output)
        for name in flow.tensors(step):
            onward[name] = onward.get(name, 0) + total
    paths = into.get(end, 0)
    made = [name for step in steps for name in step.node.output if name]
    return [name for name in made if paths and into[name] * onward.get(name, 0) == paths]


def _between(flow: Dataflow, before: str, after: str, steps: list[Any]) -> list[Any]:
    """The steps that make `after`, down to `before` and to what no image changes."""
    wanted, inner = {after}, []
    for step in reversed(steps):
        if wanted.intersection(step.node.output):
            inner.append(step)
            wanted.update(name for name in flow.tensors(step) if name != before)
    return inner[::-1]


def _tables(
    flow: Dataflow, before: str, after: str, inner: list[Any], half: bool
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Sin and cos `[H or 1, N, d]`, float32, the sign of each pair in sin; None where it is no such rotation."""
    _, heads, count, width = flow.shapes[after]

    def sent(x: torch.Tensor) -> torch.Tensor:
        values = flow.arrays()
        values[before] = x
        for step in inner:
            compute(step, values)
        out: torch.Tensor = values[after]
        return out

    first = torch.zeros(width, dtype=torch.float64)
    first[: width // 2 if half else None : 1 if half else 2] = 1
    ones = torch.ones(1, heads, count, width, dtype=torch.float64)
    member, other = sent(ones * first), sent(ones * (1 - first))
    cos = torch.where(first > 0, member, other)
    sin = torch.where(first > 0, other, member)
    x = torch.randn(1, heads, count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    got = sent(x)
    if got.shape != x.shape or (got - x * cos - swap(x, half) * sin).abs().max() > EXACT * x.abs().max():
        return None
    sin, cos = sin[0].float(), cos[0].float()
    if all(torch.equal(table, table[:1].expand_as(table)) for table in (sin, cos)):
        sin, cos = sin[:1], cos[:1]
    return sin, cos

"""How heads lie in the output of a Linear and in front of the next one: found by sending numbers through the moves.

Exporters write the same transposition in a dozen ways. What is sent through says where each number went: every element
carries its place as its value, so no way needs a pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgevit.errors import LoadError
from edgevit.from_onnx.dataflow import is_linear
from edgevit.from_onnx.editing import OWN, attribute
from edgevit.from_onnx.program import compute
from edgevit.from_onnx.rotations import rotation

if TYPE_CHECKING:
    from edgevit.adapters.rotation import Rotation
    from edgevit.from_onnx.dataflow import Dataflow, Segment

NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization")
MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity")
EXACT = 1e-6  # of a place number, behind a factor that float32 rounded


@dataclass(frozen=True)
class Part:
    """Queries, keys or values: `factor` times rows `[H, d]` of a Linear's output.

    Behind them a norm over d or none, then a rotation of positions or none.
    """

    linear: Any
    rows: np.ndarray
    factor: float
    norm: Segment | None
    rotation: Rotation | None


def part(flow: Dataflow, attention: Any, place: int) -> Part:
    """Input `place` (0 queries, 1 keys, 2 values) of an attention. Raises UnsupportedModel."""
    value, what = attention.node.input[place], ("queries", "keys", "values")[place]
    steps, linears = _above(flow, value)
    if len(linears) != 1:
        flow.refuse(attention, f"its {what} are made by {len(linears)} Linears; one was expected")
    linear = linears[0]
    width, shape = int(linear.operand1.shape[0]), flow.shapes[linear.node.output[0]]
    norms = [step for step in steps if step.node.op_type in NORMS]
    if len(shape) != 3:
        flow.refuse(attention, f"its {what} are made by a Linear of {list(shape)}; [B, N, C] was expected")
    if len(norms) > 1:
        flow.refuse(attention, f"its {what} have {len(norms)} norms behind their Linear; at most one was expected")
    turned = rotation(flow, linear.node.output[0], steps, value) if place < 2 else None
    if turned and norms and flow.made[norms[0].node.output[0]] > flow.made[turned.after]:
        flow.refuse(norms[0], f"it norms {what} that are rotated already; a norm in front of the rotation was expected")
    passed = {step.node.output[0]: step.node.input[0] for step in norms}
    if turned:
        passed[turned.after] = turned.before
    tokens = shape[1]
    rows = torch.arange(width, dtype=torch.float64).expand(1, tokens, width)
    places = rows + width * torch.arange(tokens, dtype=torch.float64)[:, None]
    probes = (0 * rows, 0 * rows + 1, places)
    zero, one, sent = (_heads(flow, attention, place, steps, {linear.node.output[0]: x}, passed) for x in probes)
    factor = float(one.reshape(-1)[0])
    heads, _, size = sent.shape
    index = np.rint(sent[:, 0] / (factor or 1.0)).astype(np.int64)  # [H, d]
    want = factor * (index[:, None, :] + width * np.arange(tokens)[None, :, None])
    straight = sent.shape[1] == tokens and np.allclose(sent, want, rtol=EXACT, atol=EXACT)
    if zero.any() or not factor or not np.allclose(one, factor, rtol=EXACT, atol=0) or not straight:
        flow.refuse(
            attention,
            f"its {what} [H={heads}, d={size}] are not a Linear's rows, each token its own, with or without a rotation "
            "of positions: something else lies between",
        )
    norm = norms[0] if norms else None
    return Part(
        linear,
        index,
        factor,
        norm and flow.segment((norm.node.input[0],), norm.node.output[0]),
        turned and turned.rotation,
    )


def _above(flow: Dataflow, value: str) -> tuple[list[Any], list[Any]]:
    """The steps between a value and the Linears that it is made of, in order, and those Linears."""
    found: set[int] = set()
    linears: dict[int, Any] = {}
    wanted = [value]
    while wanted:
        place = flow.made.get(wanted.pop())
        if place is None or place in found:
            continue
        step = flow.steps[place]
        if is_linear(step):
            linears[place] = step
            continue
        found.add(place)
        wanted.extend(flow.tensors(step))
    return [flow.steps[i] for i in sorted(found)], list(linears.values())


def _heads(
    flow: Dataflow, attention: Any, place: int, steps: list[Any], sent: dict[str, Any], passed: dict[str, str]
) -> np.ndarray:
    """A Linear's output `[1, N, C]` → `[H, N, d]` as the attention gets it. passed: value → the one it stands for."""
    values = {**flow.arrays(), **sent}
    for step in steps:
        output = step.node.output[0]
        if output in passed:
            values[output] = values[passed[output]]
            continue
        try:
            compute(step, values)
        except LoadError as error:
            flow.refuse(step, f"it does not move the numbers of a Linear alone ({error})")
    got: torch.Tensor = values[attention.node.input[place]]
    if attention.node.domain == OWN and place == 1:
        got = got.transpose(-2, -1)
    if got.ndim == 3:
        count = attribute(attention.node, "kv_num_heads" if place else "q_num_heads")
        got = got.reshape(*got.shape[:2], int(count), -1).transpose(1, 2)
    return got[0].numpy()


def joined(flow: Dataflow, attention: Any, heads: int) -> str:
    """The value `[1, N, H * d]` that the attention's output becomes, heads side by side. Raises UnsupportedModel."""
    value = start = attention.node.output[0]
    shape = flow.shapes[value]
    steps = []
    while len(flow.readers.get(value, [])) == 1 and flow.readers[value][0].node.op_type in MOVES:
        steps.append(flow.readers[value][0])
        value = steps[-1].node.output[0]
    tokens, size = (shape[2], shape[3]) if len(shape) == 4 else (shape[1], shape[2] // heads)
    want = torch.arange(tokens * heads * size, dtype=torch.float64).reshape(1, tokens, heads * size)
    sent = want if len(shape) == 3 else want.reshape(1, tokens, heads, size).transpose(1, 2)
    values = flow.arrays()
    values[start] = sent
    for step in steps:
        compute(step, values)
    if values[value].shape != want.shape or not torch.equal(values[value], want):
        flow.refuse(attention, f"its heads are not put side by side, [B, {tokens}, {heads * size}], by what follows")
    return str(value)

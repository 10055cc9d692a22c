"""The transformer blocks of an imported module, from whatever exporter.

Around each attention: the stream in front of it and behind its residual are values that every path leads through. From
there on nothing is matched by pattern. What lies between is run as it is, and proven to treat each token alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgevit.adapters.block import Block, heads_first, heads_last
from edgevit.distance import relative_error
from edgevit.errors import LoadError, UnsupportedModel
from edgevit.from_onnx.dataflow import is_linear
from edgevit.from_onnx.editing import OWN, attribute
from edgevit.from_onnx.heads import Part, joined, part
from edgevit.from_onnx.program import compute
from edgevit.stages import Tap
from edgevit.tokens.lowering import table_pairs

if TYPE_CHECKING:
    from edgevit.from_onnx.dataflow import Dataflow, Segment
    from edgevit.tokens.protocol import Tokens

ALONE = "each token alone was expected here, so that any number of tokens fits"
MASK = 3  # which input of an attention is added to its logits
SAME_TOKEN = 1e-4  # relative: a token among fewer others, in float32


class Found(NamedTuple):
    """One block by the names of its values. attended: heads side by side; middle: behind the attention's residual."""

    attention: Any
    stream: str
    attended: str
    middle: str
    out: str


class ForeignBlock(Block):
    """A block of an imported module: its Linears for q, k and v, and three pieces of the module itself."""

    def __init__(self, flow: Dataflow, found: Found, parts: tuple[Part, Part, Part], bias: torch.Tensor | None) -> None:
        """bias: `[H, N, N]` of positions on the logits, or None."""
        super().__init__()
        self.bias: torch.Tensor | None
        self.register_buffer("bias", bias, persistent=False)
        self.turns = nn.ModuleDict({k: p.rotation for k, p in zip("qk", parts, strict=False) if p.rotation is not None})
        linears = list({id(p.linear): p.linear for p in parts}.values())
        self.before = flow.segment((found.stream,), linears[0].node.input[0])
        self.behind = flow.segment((found.stream, found.attended), found.middle)
        self.mlp = flow.segment((found.middle,), found.out)
        self.heads = [int(p.rows.shape[0]) for p in parts]
        self.norms = nn.ModuleList(p.norm or nn.Identity() for p in parts)
        self.scale = parts[0].factor * parts[1].factor * scale_of(found.attention, parts[0])
        made: list[nn.Linear] = []
        self.places: dict[int, tuple[int, int, int]] = {}  # q, k or v → which Linear, its first row and the one behind
        for i, linear in enumerate(linears):
            first, rows = 0, []
            for kind, p in enumerate(parts):
                if p.linear is linear:
                    rows.append(p.rows.reshape(-1))
                    self.places[kind] = i, first, first + p.rows.size
                    first += p.rows.size
            made.append(_linear(linear, np.concatenate(rows)))
        self.linears = nn.ModuleList(made)
        self.fused = len(linears) == 1 and len({p.rows.shape for p in parts}) == 1
        self.attention_width = (parts[1].rows.size + parts[2].rows.size) // 2
        own = sum(linear.weight.numel() for linear in made)
        self.macs_per_token = (own + self.before.macs() + self.behind.macs(), self.mlp.macs())

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """`[B, N, C]` → queries, keys, values, at the tokens' positions."""
        normed = self.before(x)
        if self.fused:  # in the form that `edgevit.export.split_qkv` knows
            batch, count, _ = normed.shape
            out = self.linears[0](normed).reshape(batch, count, 3, self.heads[0], -1).permute(2, 0, 3, 1, 4)
            q, k, v = (norm(one) for norm, one in zip(self.norms, out.unbind(0), strict=True))
        else:
            q, k, v = (self._part(normed, kind) for kind in range(3))
        return self.place(Tap(q, k, v, self.scale, normed=normed), tokens)

    def query_keys(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Queries and keys alone; `v` is a stand-in without columns."""
        normed = self.before(x)
        q, k = self._part(normed, 0), self._part(normed, 1)
        return self.place(Tap(q, k, q[..., :0], self.scale), tokens)

    @property
    def positional(self) -> bool:
        """Whether its attention reads positions."""
        return self.bias is not None or len(self.turns) > 0

    def place(self, tap: Tap, tokens: Tokens) -> Tap:
        """Rotate queries and keys, and look the bias up, by the positions that tokens keep."""
        turned = {}
        for name, rotation in self.turns.items():
            turn: Any = rotation
            turned[name] = turn.turn(getattr(tap, name), *turn(tokens.place))
        bias = None if self.bias is None else table_pairs(self.bias, tokens.place)
        return tap._replace(bias=bias, **turned)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, d]`."""
        return self._part(self.before(x), 2)

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """All up to the middle of the block."""
        out: torch.Tensor = self.behind(x, heads_last(attended))
        return out

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`."""
        out: torch.Tensor = self.mlp(x)
        return out

    def _part(self, normed: torch.Tensor, kind: int) -> torch.Tensor:
        """Queries, keys or values (0, 1, 2) alone: `[B, H, N, d]`."""
        which, first, end = self.places[kind]
        linear: Any = self.linears[which]
        if end - first == linear.out_features:
            rows = linear(normed)
        else:
            bias = None if linear.bias is None else linear.bias[first:end]
            rows = F.linear(normed, linear.weight[first:end], bias)
        out: torch.Tensor = self.norms[kind](heads_first(rows, self.heads[kind]))
        return out


def _linear(step: Any, rows: np.ndarray) -> nn.Linear:
    """The step as a module with its rows in this order; its own weights where that is their order already."""
    weight, bias = step.operand1, getattr(step, "operand2", None)
    linear = nn.Linear(weight.shape[1], len(rows), bias=bias is not None, device="meta")
    same = np.array_equal(rows, np.arange(weight.shape[0]))
    order = torch.from_numpy(rows)
    linear.weight = weight if same else nn.Parameter(weight.detach()[order], requires_grad=False)
    if bias is not None:
        linear.bias = bias if same else nn.Parameter(bias.detach()[order], requires_grad=False)
    return linear.eval()


def scale_of(attention: Any, queries: Part) -> float:
    """What an attention multiplies q·k by."""
    scale = attribute(attention.node, "scale")
    return float(queries.rows.shape[1] ** -0.5 if scale is None else scale)


def blocks(flow: Dataflow) -> tuple[list[ForeignBlock], str, str]:
    """All blocks in order, the value that enters the first, and the one that the last gives.

    Raises UnsupportedModel, naming the node where it stops.
    """
    found = _outlines(flow)
    made = []
    for one in found:
        q, k, v = (part(flow, one.attention, place) for place in range(3))
        sources = {p.linear.node.input[0] for p in (q, k, v)}
        if len(sources) != 1 or v.factor != 1.0:
            flow.refuse(one.attention, "its queries, keys and values were expected to be Linears of one value")
        made.append(ForeignBlock(flow, one, (q, k, v), position_bias(flow, one.attention, q.rows.shape[0])))
        for segment in (made[-1].before, made[-1].behind, made[-1].mlp):
            prove_alone(flow, segment)
    return made, found[0].stream, found[-1].out


def position_bias(flow: Dataflow, attention: Any, heads: int) -> torch.Tensor | None:
    """What is added to an attention's logits, `[H, N, N]`, or None. Raises UnsupportedModel for another mask."""
    node = attention.node
    if any(node.input[MASK + 1 :]) or any(attribute(node, name, 0) for name in ("is_causal", "softcap")):
        flow.refuse(attention, "it is causal, capped or reads past keys; softmax(q kᵀ · scale + bias) was expected")
    if len(node.input) <= MASK or not node.input[MASK]:
        return None
    bias = flow.constant(node.input[MASK], getattr(attention, f"operand{MASK}", None))
    if bias is None or not bias.is_floating_point() or bias.shape[:-3].numel() != 1:
        flow.refuse(attention, "it has a mask inside; a bias of positions that no image changes was expected")
    count = flow.shapes[node.output[0]][-2]
    return bias.float().reshape((1,) * (3 - bias.ndim) + tuple(bias.shape[-3:])).expand(heads, count, count)


def _outlines(flow: Dataflow) -> list[Found]:
    """Where each block starts, turns and ends; an attention over other tokens behind the last one is the head's."""
    attentions = [s for s in flow.steps if s.node.op_type == "Attention" and s.node.domain in (OWN, "", "ai.onnx")]
    if not attentions:
        raise UnsupportedModel(
            f"{flow.file}: its tokens cannot be reduced: no node computes softmax(q kᵀ · scale) v on [B, H, N, d]; it "
            "exports dense (drop --reduce)"
        )
    shape = flow.shapes[_last(flow, attentions[0], None)]
    if len(attentions) > 1 and _pools(flow, attentions[-1], shape[1]):
        attentions = attentions[:-1]
    found: list[Found] = []
    streams = [_last(flow, attention, shape) for attention in attentions]
    behind = [_behind(flow, attention, shape) for attention in attentions]
    far = behind[0].index(streams[1]) if len(streams) > 1 and streams[1] in behind[0] else None
    for i, attention in enumerate(attentions):
        last = i + 1 == len(attentions)
        out = _end(flow, behind[i], far) if last else streams[i + 1]
        if not behind[i] or out not in behind[i]:
            flow.refuse(attention, f"no stream of tokens {list(shape)} lies behind it, as behind the first attention")
        heads = _head_count(flow, attention)
        found.append(Found(attention, streams[i], joined(flow, attention, heads), behind[i][0], out))
    return found


def _pools(flow: Dataflow, attention: Any, tokens: int) -> bool:
    """Whether an attention asks all tokens something that is not the tokens: it is the head."""
    keys = flow.shapes.get(attention.node.input[1], ())
    count = keys[-1 if attention.node.domain == OWN else -2] if len(keys) > 2 else 0
    return count == tokens and flow.shapes[attention.node.output[0]][-2] != tokens


def _head_count(flow: Dataflow, attention: Any) -> int:
    shape = flow.shapes[attention.node.output[0]]
    return shape[1] if len(shape) == 4 else int(attribute(attention.node, "q_num_heads"))


def _last(flow: Dataflow, attention: Any, shape: tuple[int, ...] | None) -> str:
    """The last value `[1, N, C]` in front of an attention that every path leads through."""
    place = flow.made[attention.node.output[0]]
    cuts = [n for n in flow.cuts if flow.made[n] < place and len(flow.shapes[n]) == 3]
    if not cuts or (shape and flow.shapes[cuts[-1]] != shape):
        given = list(flow.shapes[cuts[-1]]) if cuts else "none"
        flow.refuse(attention, f"one stream of tokens [B, N, C] was expected in front of it; found {given}")
    return cuts[-1]


def _behind(flow: Dataflow, attention: Any, shape: tuple[int, ...]) -> list[str]:
    """The values of the stream's shape behind an attention, up to the next one, that every path leads through."""
    place = flow.made[attention.node.output[0]]
    return [n for n in flow.cuts if flow.made[n] > place and flow.shapes[n] == shape]


def _end(flow: Dataflow, cuts: list[str], far: int | None) -> str:
    """What the last block gives: as far behind its attention as in the first block, else behind two Linears."""
    if far is not None:
        return cuts[far] if far < len(cuts) else ""
    ends = [n for n in cuts[1:] if sum(map(is_linear, flow.segment((cuts[0],), n).steps)) > 1]
    return (ends or cuts or [""])[0]


def prove_alone(flow: Dataflow, segment: Segment) -> None:
    """Run a piece on all tokens, and on some in another order: every value must follow. Raises UnsupportedModel."""
    count = flow.shapes[segment.inputs[0]][1]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))[: count - max(1, count // 3)]
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(1, *flow.shapes[name][1:], generator=generator) for name in segment.inputs]
    whole, some = segment.start(*inputs), segment.start(*(x[:, order] for x in inputs))
    with torch.no_grad():
        for step in segment.steps:
            compute(step, whole)
            try:
                compute(step, some)
            except LoadError as error:
                raise UnsupportedModel(
                    f"{flow.file}: its tokens cannot be reduced: {error}; {ALONE}; it exports dense (drop --reduce)"
                ) from error
            for name in step.node.output:
                if name and not _follows(whole[name], some[name], order):
                    flow.refuse(step, ALONE)


def _follows(whole: Any, some: Any, order: torch.Tensor) -> bool:
    if not isinstance(whole, torch.Tensor):
        return True
    if whole.ndim != 3 or whole.shape[1] <= int(order.max()):
        return False
    want = whole[:, order]
    return want.shape == some.shape and relative_error(some, want) <= SAME_TOKEN

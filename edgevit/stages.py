"""One frozen type per stage of the pipeline; the verbs between them live in the modules named here.

load → Checkpoint     (edgevit.load)         adapt → VitModel        (edgevit.adapters)
reduce → ReducedModel (edgevit.reduce)       trace → Graph           (edgevit.export.trace)
quantize → QuantizedGraph (edgevit.quant)    build → Engine          (edgevit.runtimes)
measure → Measurement (edgevit.devices)      bundle → Bundle         (edgevit.bundle)

This module imports only the standard library; tensors and programs appear as types alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

    from edgevit.preprocess import Preprocess
    from edgevit.tokens.protocol import Tokens
    from edgevit.tokens.schedule import TokenSchedule


@dataclass(frozen=True)
class Refusal:
    """Something that was left out, by name, with the reason."""

    layer: str
    reason: str


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: weights are in memory, finite, and complete.

    Exactly one of `module` (eager) and `program` (an exported program) is set. labels: class names it came with.
    origin: what was found out about a foreign file, for the manifest.
    """

    name: str
    arch: str | None
    sha256: str
    preprocess: Preprocess
    source: Path | None = None
    module: nn.Module | None = None
    program: ExportedProgram | None = None
    labels: tuple[str, ...] | None = None
    origin: Mapping[str, Any] | None = None

    def callable(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The float model as a function `[B, 3, H, W] -> [B, classes]`: the reference of every later check."""
        if self.module is not None:
            return self.module
        assert self.program is not None
        run: Callable[[torch.Tensor], torch.Tensor] = self.program.module()
        return run


class Tap(NamedTuple):
    """What a block's attention reads, before the product: for the attention itself and for the reduction behind it.

    q, k: `[B, H, N, d]`, after any q/k normalization and rotation. v: `[B, H, N, dv]`. scale: the factor on q·kᵀ.
    log_size: `[B, N]`, the proportional-attention bias on the logits, or None.
    bias: any other bias on the logits (relative positions, window masks), broadcastable to `[B, H, N, N]`, or None.
    gate: what `finish` needs again, or None.
    probabilities: `[B, H, N, N]` behind the softmax, where a method asked for them, else None.
    normed: `[B, N, C]`, what queries and keys are made from, where the block has it at hand, else None.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    log_size: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None
    normed: torch.Tensor | None = None


class BlockView(Protocol):
    """One transformer block in four parts, so that a reduction can stand between any two (base: `adapters.block`)."""

    macs_per_token: tuple[int, int]
    """Multiply-accumulates of (attention projections, feed-forward) for one token."""
    attention_width: int
    """Mean of H * d over keys and values: the two attention products cost 2 * width * N**2."""

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """`[B, N, C]` → queries, keys, values; `tokens` says where each token stands, for positions inside."""

    def attend(self, tap: Tap, explicit: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The attention product `[B, H, N, dv]`; with `explicit` the probabilities `[B, H, N, N]` too."""

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """Output projection and residual: `[B, N, C]`, `[B, H, N, dv]` → `[B, N, C]`."""

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`, the block's second half, residual included."""


@dataclass(frozen=True)
class Stage:
    """Blocks that one set of tokens runs through. A plain ViT is one stage; Swin has one per block.

    enter: what came before → tokens `[B * groups, prefix + h * w, C]`, prefix tokens first.
    leave: tokens → what comes next. restores: `leave` needs every token back (windows, maps, pooling).
    groups: sets of tokens per image that are reduced alike (windows, patches of a map).
    shortcut: `leave` is called with (tokens, what `enter` was given), for a residual around the whole stage.
    """

    blocks: Sequence[BlockView]
    prefix: int
    grid: tuple[int, int]
    groups: int = 1
    restores: bool = False
    enter: Callable[[torch.Tensor], torch.Tensor] | None = None  # None: the tokens as they come
    leave: Callable[..., torch.Tensor] | None = None
    shortcut: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of one group, prefix included."""
        return self.prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class VitModel:
    """A Vision Transformer taken apart by an adapter; the original module is not touched.

    stem: images `[B, 3, H, W]` → what the first stage enters (tokens `[B, P + N, C]`, the P prefix tokens first).
    head: (tokens `[B, M, C]`, sizes `[B, M]` or None) → what the model returns.
    pooling: "token" when the head reads prefix tokens alone, "none" when it returns tokens or a map, else how it pools
    patches. positional: blocks read positions (rotary, relative bias), so positions travel with the tokens.
    trained: modules that a trained method brought with its checkpoint, by the method's schedule name. Where the
    reduction is part of the architecture that is the whole model, and no stage has blocks.
    Must hold: with no reduction the outputs equal the original's to 1e-5 (the adapter proves it).
    """

    module: nn.Module
    family: str
    stem: nn.Module
    stages: tuple[Stage, ...]
    head: nn.Module
    class_token: bool
    image_size: tuple[int, int]
    pooling: str
    positional: bool = False
    trained: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def blocks(self) -> tuple[BlockView, ...]:
        """All blocks whose tokens can be reduced, in order; schedules count them from 1."""
        return tuple(block for stage in self.stages for block in stage.blocks)

    @property
    def prefix_tokens(self) -> int:
        """Class, distillation and register tokens in front of the first stage's patches."""
        return self.stages[0].prefix

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across) of the first stage, of one group."""
        return self.stages[0].grid

    @property
    def tokens(self) -> int:
        """Tokens that enter the first block, prefix included, of one group."""
        return self.stages[0].tokens


@dataclass(frozen=True)
class ReducedModel:
    """A module that runs a token schedule, and what it costs.

    tokens: count after each block, Python ints. macs: dense and reduced multiply-accumulates of one image.
    notes: what the schedule could not do as written (for example a capped r), never silent.
    images: images of one picture, one row of the output; the batch is a multiple of it.
    """

    module: nn.Module
    original: nn.Module
    schedule: TokenSchedule
    tokens: tuple[int, ...]
    dense_macs: int
    reduced_macs: int
    notes: tuple[str, ...] = ()
    images: int = 1

    def undo(self) -> nn.Module:
        """The original module, as it was: reduction wraps, it never edits."""
        return self.original


@dataclass(frozen=True)
class InputSpec:
    """The one static input of a program: float32 images `[batch, 3, height, width]`."""

    batch: int
    height: int
    width: int
    name: str = "images"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(batch, 3, height, width)`."""
        return (self.batch, 3, self.height, self.width)


@dataclass(frozen=True)
class Graph:
    """A traced program with static shapes and no forbidden operator; `passes` that changed it, in order."""

    program: ExportedProgram
    inputs: InputSpec
    passes: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizedGraph(Graph):
    """A program with explicit Q/DQ. Every compute node is quantized or listed in `kept_float` with its reason.

    log: one line per layer: the equalization chosen, and the output error before and after correction.
    """

    kept_float: tuple[Refusal, ...] = ()
    log: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Engine:
    """Files of a compiled model inside `folder`, and how the runtime must open them.

    files: paths with forward slashes, relative to the folder. entry: one of them, or a folder that holds some.
    """

    folder: Path
    runtime: str
    runtime_version: str
    precision: str
    entry: str
    files: tuple[str, ...]
    inputs: InputSpec
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """One fresh process: raw latencies of single inferences in milliseconds, and the conditions around them.

    first_ms: the first inference; None where the runtime keeps it to itself. peak_memory_bytes: None is unknown.
    """

    bundle: str
    samples_ms: tuple[float, ...]
    load_ms: float
    first_ms: float | None
    peak_memory_bytes: int | None
    loadavg: float


@dataclass(frozen=True)
class Measurement:
    """All rounds of one session, interleaved, with the device and its conditions."""

    device: Mapping[str, Any]
    conditions: Mapping[str, Any]
    rounds: tuple[Round, ...]

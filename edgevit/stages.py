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
    from edgevit.tokens.schedule import TokenSchedule


@dataclass(frozen=True)
class Refusal:
    """Something that was left out, by name, with the reason."""

    layer: str
    reason: str


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: weights are in memory, finite, and complete.

    Exactly one of `module` (eager) and `program` (an exported program) is set.
    """

    name: str
    arch: str | None
    sha256: str
    preprocess: Preprocess
    source: Path | None = None
    module: nn.Module | None = None
    program: ExportedProgram | None = None

    def callable(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The float model as a function `[B, 3, H, W] -> [B, classes]`: the reference of every later check."""
        if self.module is not None:
            return self.module
        assert self.program is not None
        run: Callable[[torch.Tensor], torch.Tensor] = self.program.module()
        return run


class Tap(NamedTuple):
    """What a block's attention saw, for the reduction step behind it.

    q, k, v: `[B, H, N, d]`, after any q/k normalization. scale: the factor on q·kᵀ.
    log_size: `[B, N]`, the proportional-attention bias that was added to the logits, or None.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    log_size: torch.Tensor | None


class BlockView(Protocol):
    """One transformer block, cut open after its attention residual."""

    macs_per_token: tuple[int, int]
    """Multiply-accumulates of (attention projections, feed-forward) for one token."""
    attention_width: int
    """H * d, the width of the attention product."""

    def attend(self, x: torch.Tensor, log_size: torch.Tensor | None) -> tuple[torch.Tensor, Tap]:
        """`[B, N, C]` → the stream after the attention residual `[B, N, C]`, and the tap."""

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`, the block's second half, residual included."""


@dataclass(frozen=True)
class VitModel:
    """A Vision Transformer taken apart by an adapter; the original module is not touched.

    stem: images `[B, 3, H, W]` → tokens `[B, P + N, C]`, the P prefix tokens first.
    head: (tokens `[B, M, C]`, sizes `[B, M]` or None) → what the model returns.
    pooling: "token" when the head reads prefix tokens alone, else how it pools patches.
    Must hold: with no reduction the outputs equal the original's to 1e-5 (the adapter proves it).
    """

    module: nn.Module
    family: str
    stem: nn.Module
    blocks: Sequence[BlockView]
    head: nn.Module
    prefix_tokens: int
    class_token: bool
    grid: tuple[int, int]
    image_size: tuple[int, int]
    pooling: str

    @property
    def tokens(self) -> int:
        """Tokens that enter the first block, prefix included."""
        return self.prefix_tokens + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class ReducedModel:
    """A module that runs a token schedule, and what it costs.

    tokens: count after each block, Python ints. macs: dense and reduced multiply-accumulates of one image.
    notes: what the schedule could not do as written (for example a capped r), never silent.
    """

    module: nn.Module
    original: nn.Module
    schedule: TokenSchedule
    tokens: tuple[int, ...]
    dense_macs: int
    reduced_macs: int
    notes: tuple[str, ...] = ()

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
    """Files of a compiled model inside `folder`, and how the runtime must open them."""

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
    """One fresh process: raw latencies of single inferences in milliseconds, and the conditions around them."""

    bundle: str
    samples_ms: tuple[float, ...]
    load_ms: float
    first_ms: float
    peak_memory_bytes: int
    loadavg: float


@dataclass(frozen=True)
class Measurement:
    """All rounds of one session, interleaved, with the device and its conditions."""

    device: Mapping[str, Any]
    conditions: Mapping[str, Any]
    rounds: tuple[Round, ...]

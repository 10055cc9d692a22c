"""Calibration: stream images through the program and remember a bounded sample of each quantized input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from edgevit.errors import QuantError

if TYPE_CHECKING:
    import numpy as np
    from torch.fx import GraphModule, Node

ROWS = 1024  # rows kept per tensor, however many images there are


@dataclass
class Observed:
    """What calibration saw of one tensor.

    axis: of the channels, by the layer that reads the tensor: 1 for a convolution, else the last.
    rows: `[n, C]`, a sample. low, high: over all images. peak: `[C]`, largest magnitude per channel, over all images.
    """

    axis: int = -1
    low: float = float("inf")
    high: float = float("-inf")
    peak: torch.Tensor | None = None
    kept: list[torch.Tensor] = field(default_factory=list)

    @property
    def rows(self) -> torch.Tensor:
        """The sample as one tensor."""
        return torch.cat(self.kept)

    def see(self, value: torch.Tensor, take: int, generator: torch.Generator) -> None:
        """Add one batch."""
        rows = value.movedim(self.axis, -1).reshape(-1, value.shape[self.axis])
        low, high = float(rows.min()), float(rows.max())
        # NaN compares false with everything, so min() and max() would forget it
        nan = math.isnan(low) or math.isnan(self.low)
        self.low, self.high = (math.nan, math.nan) if nan else (min(self.low, low), max(self.high, high))
        peak = rows.abs().amax(0)
        self.peak = peak if self.peak is None else torch.maximum(self.peak, peak)
        if take:
            self.kept.append(rows[torch.randint(0, len(rows), (take,), generator=generator)].clone())


def _channel_axis(node: Node) -> int:
    return 1 if any("conv" in str(user.target) for user in node.users) else -1


class _Recorder(fx.Interpreter):
    """Runs the program node by node and shows the wanted values to their observers."""

    def __init__(self, module: GraphModule, wanted: dict[Node, Observed]) -> None:
        super().__init__(module)
        self.wanted, self.take = wanted, 0
        self.generator = torch.Generator().manual_seed(0)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.wanted[n].see(value, self.take, self.generator)
        return value


def observe(
    module: GraphModule,
    nodes: Iterable[Node],
    batches: Iterable[np.ndarray[Any, Any]],
    count: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[Node, Observed]:
    """Run `count` calibration batches `[B, 3, H, W]` and return what was seen of each node's output."""
    wanted = {node: Observed(_channel_axis(node)) for node in nodes}
    recorder = _Recorder(module, wanted)
    with torch.no_grad():
        for index, images in enumerate(batches):
            # past ROWS images only every k-th still adds rows, so the sample stays spread over all of them
            recorder.take = max(1, ROWS // count) if index % (1 + count // ROWS) == 0 else 0
            recorder.run(torch.from_numpy(images))
            progress(index + 1)
    for node, seen in wanted.items():
        if not seen.kept:
            raise QuantError("calibration saw no image; pass --calib DATA with at least one")
        if not (math.isfinite(seen.low) and math.isfinite(seen.high)):
            raise QuantError(
                f"{node.name} becomes infinite or NaN on the calibration images; is the preprocessing right?"
            )
    return wanted

"""Observation: stream images through the program and remember a bounded sample of each quantized input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
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
    rows: `[n, C]`, a sample. lows, highs: `[C]`, smallest and largest value of each channel, over all images.
    """

    axis: int = -1
    kept: list[torch.Tensor] = field(default_factory=list)
    lows: torch.Tensor = field(default_factory=lambda: torch.tensor(math.inf))
    highs: torch.Tensor = field(default_factory=lambda: torch.tensor(-math.inf))

    @property
    def rows(self) -> torch.Tensor:
        """The sample as one tensor."""
        return torch.cat(self.kept)

    @property
    def low(self) -> float:
        """Of all channels."""
        return float(self.lows.min())

    @property
    def high(self) -> float:
        """Of all channels."""
        return float(self.highs.max())

    @property
    def peak(self) -> torch.Tensor:
        """Largest magnitude of each channel, `[C]`."""
        return torch.maximum(self.highs, -self.lows)

    def see(self, value: torch.Tensor, take: int, generator: torch.Generator) -> None:
        """Add one batch."""
        rows = value.movedim(self.axis, -1).reshape(-1, value.shape[self.axis])
        low, high = torch.aminmax(rows, dim=0)  # a NaN stays one, here and in the next two
        self.lows, self.highs = torch.minimum(self.lows, low), torch.maximum(self.highs, high)
        if take:
            self.kept.append(rows[torch.randint(0, len(rows), (take,), generator=generator)].clone())


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
    nodes: Mapping[Node, bool],
    batches: Iterable[np.ndarray[Any, Any]],
    count: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[Node, Observed]:
    """Run `count` calibration batches `[B, 3, H, W]` and return what was seen of each node's output.

    nodes: and whether each is a map, whose channels are axis 1.
    """
    wanted = {node: Observed(1 if is_map else -1) for node, is_map in nodes.items()}
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

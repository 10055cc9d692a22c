"""Equalization: move range from the channels of an input into the columns of the weights that read it.

x' = (x - centre) / scale and W' = W · scale, b' = b + W · centre give the same outputs (an affine migration). Three
ways to choose them, each a candidate beside "off", because any of them can ruin a layer:

- SmoothQuant (Xiao et al., 2023, arXiv:2211.10438, eq. 4): scale_j = max|X_j|^alpha / max|W_j|^(1 - alpha);
- the same behind a shift that centres each channel (MPTQ-ViT's SQ-b, arXiv:2401.14895);
- RepQ-ViT (Li et al., 2023, arXiv:2212.08254, eq. 9-12): all channels get the mean channel's range, and its middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from edgevit.quant.flow import operator
from edgevit.quant.layers import Group, Layer
from edgevit.quant.observe import Observed
from edgevit.quant.ranges import LEAST, affine, candidates, dequantize_weight, fake_quantize
from edgevit.quant.scheme import Affine, QuantScheme
from edgevit.quant.weights import round_weight

ALPHAS = (0.3, 0.5, 0.65, 0.8, 0.95, 1.1)
CLIP = (1e-4, 1e4)
REPQ_CLIP = (0.1, 64.0)  # a channel that hardly moves would blow its column up
EXACT = 1e-2  # of a step: float32 normalization moves a pixel by less
PAYS = 0.8
"""A rescale that costs an operator must bring the error below this share of the best one that costs none."""


@dataclass(frozen=True)
class Equalization:
    """x → (x - centre) / scale, channel by channel, `[C]` each; None: as it is."""

    name: str = "off"
    scale: torch.Tensor | None = None
    centre: torch.Tensor | None = None

    @property
    def moves(self) -> bool:
        """Whether it does anything."""
        return self.scale is not None or self.centre is not None

    def apply(self, x: torch.Tensor, layer: Layer) -> torch.Tensor:
        """The values that are quantized."""
        if self.centre is not None:
            x = x - layer.channels(self.centre)
        return x if self.scale is None else x / layer.channels(self.scale)

    def weight(self, layer: Layer) -> torch.Tensor:
        """The layer's weight behind it."""
        return layer.weight if self.scale is None else layer.weight * layer.columns(self.scale)

    def bias(self, layer: Layer) -> torch.Tensor | None:
        """The layer's bias behind it."""
        if self.centre is None:
            return layer.bias
        moved = layer.weight @ self.centre
        return moved if layer.bias is None else layer.bias + moved


@dataclass(frozen=True)
class Choice:
    """How a group's input is quantized.

    error: of the outputs, relative to their power, mean error aside. free: any rescale costs no operator here.
    """

    equalization: Equalization
    quantizer: Affine
    range: str
    error: float
    free: bool = False


def choose(
    group: Group,
    seen: Observed,
    x: torch.Tensor,
    scheme: QuantScheme,
    free: bool = False,
    centre: bool = False,
    pixels: bool = False,
) -> Choice:
    """The equalization and the range whose quantized outputs are nearest to the float ones, over all the layers.

    x: a sample of the input, `[n, C]` for Linears, maps `[n, C, H, W]` for convolutions. free: a rescale costs no
    operator here; centre: nor does a shift. pixels: the input is the image, whose 256 levels need no rounding at all
    once they are counted from the lowest.
    """
    exact = [layer(x, layer.weight, None) for layer in group.layers]
    power = sum(float(y.square().mean()) for y in exact) or 1.0

    def tried(equalization: Equalization, ranges: Mapping[str, Affine]) -> Iterator[Choice]:
        weights = [dequantize_weight(*round_weight(equalization.weight(layer), scheme)) for layer in group.layers]
        moved = equalization.apply(x, group.layers[0])
        for name, quantizer in ranges.items():
            rounded, total = fake_quantize(moved, quantizer), 0.0
            for layer, weight, y in zip(group.layers, weights, exact, strict=True):
                difference = layer(rounded, weight, None) - y
                if scheme.correct_bias or equalization.centre is not None:
                    axes = [a for a in range(difference.ndim) if a != (1 if layer.is_conv else difference.ndim - 1)]
                    difference = difference - difference.mean(axes, keepdim=True)
                total += float(difference.square().mean())
            yield Choice(equalization, quantizer, name, total / power, free)

    if pixels and not group.is_conv and not scheme.symmetric:
        grid = _levels(seen)
        quantizer = affine(*_ends(seen, grid), scheme)
        moved = grid.apply(x, group.layers[0])
        if (fake_quantize(moved, quantizer) - moved).abs().max() <= EXACT * quantizer.scale:
            return next(tried(grid, {"levels": quantizer}))
    found: list[Choice] = []
    off = Equalization()
    for equalization in (off, *(() if group.is_mixed or not scheme.equalize else _offers(group, seen, centre))):
        ranges = candidates(equalization.apply(x, group.layers[0]), *_ends(seen, equalization), scheme)
        if equalization is off:
            ranges = {name: _pinned(quantizer, group, scheme) for name, quantizer in ranges.items()}
        found += tried(equalization, ranges)
    best: Choice = min(found, key=lambda choice: choice.error)
    plain = min((c for c in found if c.equalization is off), key=lambda choice: choice.error)
    return best if free or best.error < PAYS * plain.error else plain


def _levels(seen: Observed) -> Equalization:
    """Each channel from its lowest value, and all as wide as the widest: 8-bit pixels, whatever was subtracted."""
    span = seen.highs - seen.lows
    same = bool((span - span.max()).abs().max() <= 1e-6 * span.max())
    return Equalization("levels", None if same else (span / span.max()).clamp_min(1e-6), seen.lows)


def _offers(group: Group, seen: Observed, centre: bool) -> Iterator[Equalization]:
    column = torch.stack([layer.column_peak() for layer in group.layers]).amax(0)
    for alpha in ALPHAS:
        yield Equalization(f"smooth {alpha}", smoothing(seen.peak, column, alpha))
    if centre:
        middle, half = (seen.highs + seen.lows) / 2, (seen.highs - seen.lows) / 2
        for alpha in ALPHAS:
            yield Equalization(f"centre, smooth {alpha}", smoothing(half, column, alpha), middle)
        yield Equalization("repq", (half / half.mean().clamp_min(1e-12)).clamp(*REPQ_CLIP), middle)


def smoothing(peak: torch.Tensor, column: torch.Tensor, alpha: float) -> torch.Tensor:
    """Scales `[C]`, geometric mean 1, from the magnitudes of activations and of weights, `[C]` each."""
    scale = peak.clamp_min(1e-5) ** alpha / column.clamp_min(1e-5) ** (1 - alpha)
    return (scale / scale.log().mean().exp()).clamp(*CLIP)


def _ends(seen: Observed, equalization: Equalization) -> tuple[float, float]:
    """The whole range over all calibration images, behind the equalization."""
    low, high = seen.lows, seen.highs
    if equalization.centre is not None:
        low, high = low - equalization.centre, high - equalization.centre
    if equalization.scale is not None:
        low, high = low / equalization.scale, high / equalization.scale
    return float(low.min()), float(high.max())


def _pinned(q: Affine, group: Group, scheme: QuantScheme) -> Affine:
    """With the lower end that the function in front guarantees, where there is one: SiLU, GELU, ReLU, ..."""
    name = operator(group.source)
    if scheme.symmetric or name not in LEAST:
        return q
    return affine(LEAST[name], (q.high - q.zero_point) * q.scale, scheme)

"""What becomes an integer, as data. The quantizer reads it; a target states it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgevit.errors import QuantError

Storage = Literal["uint8", "int8", "uint16", "int16", "float8_e4m3fn"]


@dataclass(frozen=True, kw_only=True)
class QuantScheme:
    """Weights: symmetric, one scale per output channel. Activations: one scale per tensor, or float.

    activations: "uint8", "uint16" (affine, with a zero point), "int8", "int16" (symmetric, zero point 0),
    "float8_e4m3fn" (symmetric), or None: weights alone, which engines multiply back to float.
    weights: integers in "int8", or "float8_e4m3fn".
    affine: signed activations have a zero point too.
    weight_bits, activation_bits: fewer than 8 (or 16) are kept in the same types; no engine is faster for it, it
    shows what a narrower one would lose. None: all that the type holds.
    group: inputs that share one weight scale, 0 for all of an output channel. Convolutions, and Linears whose inputs
    are no multiple of it, then have 8 bits and one scale per output channel.
    gptq: round a weight in groups input by input, each error made up for by the inputs that follow (GPTQ).
    layers: which kinds are quantized.
    integer_bias: biases in int32, at the scale of input times weight, where a runtime fuses no float bias.
    outputs: kinds of layers of which the output is quantized too, where a runtime has no integer form with a float one.
    residuals: inputs of a convolutional stage's residual adds that are quantized: "none", "skip" (what goes around the
    convolutions), "both". Adds of transformer blocks never are: one scale for all channels of their stream ruins them.
    float_regions: regions (`edgevit.quant.regions.REGIONS`) whose layers stay float.
    wide_regions: regions whose layers have 8 bits where the others have fewer.
    least_channels: layers with fewer input or output channels stay float, but those that `edgevit.quant.rules` names;
    0 quantizes all.
    ranges: how a range may be found (`edgevit.quant.ranges.METHODS`); the one with the least output error is taken.
    equalize: search a rescale of each input, channel by channel (SmoothQuant, RepQ-ViT), off included.
    compensate: absorb the error of the quantized inputs into the weights by ridge regression (ERQ).
    correct_bias: remove the mean output error, layer after layer on quantized inputs.
    reconstruct: steps in which the weights of a block are learned together (`edgevit.quant.reconstruct`); 0: none.
    qads: reconstruction also learns a rescale of the channels of inputs where that costs no operator.
    """

    activations: Storage | None = "uint8"
    affine: bool = False
    activation_bits: int | None = None
    weights: Literal["int8", "float8_e4m3fn"] = "int8"
    weight_bits: int = 8
    group: int = 0
    gptq: bool = False
    layers: tuple[str, ...] = ("linear", "conv")
    integer_bias: bool = False
    outputs: tuple[str, ...] = ()
    residuals: Literal["none", "skip", "both"] = "none"
    float_regions: tuple[str, ...] = ()
    wide_regions: tuple[str, ...] = ()
    least_channels: int = 0
    ranges: tuple[str, ...] = ("mse", "minmax", "percentile", "kl")
    equalize: bool = True
    compensate: bool = True
    correct_bias: bool = True
    reconstruct: int = 0
    qads: bool = False

    def __post_init__(self) -> None:
        if self.affine and self.activations not in ("int8", "int16"):
            raise QuantError(f"affine=True is for int8 and int16 activations, not {self.activations}; drop it")
        if self.residuals != "none" and self.activations is None:
            raise QuantError(f"residuals={self.residuals!r} quantizes activations, and there are none; drop it")
        if self.reconstruct and self.weights != "int8":
            raise QuantError(f"reconstruct learns integers, and weights are {self.weights}; drop it")
        if self.qads and not self.reconstruct:
            raise QuantError("qads=True is a part of reconstruction, and reconstruct is 0; give it a number of steps")
        if self.weights == "float8_e4m3fn" and (self.group or self.weight_bits != 8):
            raise QuantError("weights in float8_e4m3fn have 8 bits and one scale per output channel; drop the groups")
        if self.gptq and not self.group:
            raise QuantError("gptq rounds weights in groups; set group (32, 64, 128)")
        if self.activations == "float8_e4m3fn" and "kl" in self.ranges:
            raise QuantError("a range by kl counts integers; for float8_e4m3fn use minmax, mse or percentile")

    def within(self, *regions: str) -> QuantScheme:
        """The scheme of layers of these regions that read one tensor."""
        if not set(self.wide_regions) & set(regions):
            return self
        return replace(self, weight_bits=8, activation_bits=None, group=0, gptq=False)

    @property
    def bits(self) -> int:
        """Of an activation."""
        return self.activation_bits or (16 if self.activations in ("uint16", "int16") else 8)

    @property
    def symmetric(self) -> bool:
        """Whether activations have no zero point."""
        return self.activations in ("int8", "int16", "float8_e4m3fn") and not self.affine

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest value of an activation, in steps of its scale."""
        if self.activations == "float8_e4m3fn":
            return -448, 448
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.activations in ("int8", "int16") else (0, 2 * half - 1)


@dataclass(frozen=True)
class Affine:
    """One tensor's quantizer: q = clamp(round(x / scale) + zero_point); float8: round to the values of E4M3."""

    scale: float
    zero_point: int
    low: int
    high: int
    float8: bool = False


# Operators that move or reshape values and compute nothing; dropout is traced in evaluation, where it does nothing.
MOVES = {
    "getitem", "reshape", "view", "permute", "transpose", "t", "select", "slice", "narrow", "unbind", "split",
    "split_with_sizes", "chunk", "clone", "contiguous", "alias", "detach", "cat", "stack", "expand", "expand_as",
    "repeat", "unsqueeze", "squeeze", "flatten", "unflatten", "index_select", "index", "gather", "roll", "flip", "pad",
    "constant_pad_nd", "pixel_shuffle", "pixel_unshuffle", "to", "_to_copy", "lift_fresh_copy", "dropout", "arange",
    "ones", "ones_like", "zeros", "zeros_like", "full", "full_like", "new_ones", "new_zeros", "new_full",
    "_assert_tensor_metadata", "identity",
}  # fmt: skip
OTHER_OPERATOR = "this version has no 8-bit form of it"
# Operators that compute and stay float, with the reason that goes into `kept_float`; others get OTHER_OPERATOR.
KEPT_FLOAT = {
    "layer_norm": "normalization has no integer kernel, and its statistics need range",
    "native_layer_norm": "normalization has no integer kernel, and its statistics need range",
    "batch_norm": "normalization stays float",
    "group_norm": "normalization stays float",
    "scaled_dot_product_attention": "attention core: softmax and its two products stay float",
    "softmax": "softmax stays float: 8 bits lose its tail",
    "_softmax": "softmax stays float: 8 bits lose its tail",
    "matmul": "product of two activations stays float",
    "bmm": "product of two activations stays float",
    "gelu": "GELU has no integer kernel",
    "silu": "SiLU has no integer kernel",
    "hardswish": "HardSwish has no integer kernel",
    "relu": "an activation function costs nothing in float here",
    "sigmoid": "a gate stays float",
    "tanh": "tanh stays float",
    "add": "residual stream stays float: one scale for all its channels ruins accuracy",
    "sub": "elementwise arithmetic stays float",
    "mul": "elementwise arithmetic stays float",
    "div": "elementwise arithmetic stays float",
    "mean": "pooling stays float",
    "adaptive_avg_pool2d": "pooling stays float",
    "avg_pool2d": "pooling stays float",
    "max": "token matching stays float: its argmax decides",
    "topk": "token selection stays float: its order decides",
    "log": "token sizes stay float",
}

OTHERS = {
    "w8a16": QuantScheme(activations="uint16", ranges=("minmax",)),  # 65,536 levels need no clipping
    "w8": QuantScheme(activations=None),
    # Inputs are float, so nothing is to be equalized; a regression over rounded weights is lost when they are rounded
    # again.
    "w4": QuantScheme(activations=None, weight_bits=4, group=32, gptq=True, compensate=False),
    # The step of a float grows with the value: outliers need neither clipping nor a rescale.
    "fp8": QuantScheme(activations="float8_e4m3fn", weights="float8_e4m3fn", ranges=("minmax",), equalize=False),
}
"""Schemes beside int8 that a target may offer by these names of a precision."""

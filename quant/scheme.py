"""What becomes an integer, as data. The quantizer reads it; a target states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class QuantScheme:
    """Weights: int8, symmetric, one scale per output channel. Activations: 8 bits, one scale per tensor.

    activations: "uint8" (affine, with a zero point) or "int8" (symmetric, zero point 0).
    equalize: search a per-channel rescale of each Linear's input (SmoothQuant), off included.
    correct_bias: subtract the mean output error of the calibration samples from the bias.
    """

    activations: Literal["uint8", "int8"] = "uint8"
    equalize: bool = True
    correct_bias: bool = True

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest integer of an activation."""
        return (0, 255) if self.activations == "uint8" else (-128, 127)


@dataclass(frozen=True)
class Affine:
    """One tensor's quantizer: q = clamp(round(x / scale) + zero_point)."""

    scale: float
    zero_point: int
    low: int
    high: int


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

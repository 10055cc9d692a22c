"""The ONNX form of quantizing operators that torch's exporter does not write by itself: 8-bit floats and groups.

The exporter reads the annotations when it runs, so they are no strings here.
"""

from collections.abc import Callable
from typing import Any

import onnx
import torch
import torch.ao.quantization.fx._decomposed
from onnxscript import opset19, opset21
from onnxscript.onnx_types import FLOAT, FLOAT8E4M3FN, INT8

from edgevit.export import float8

ZERO = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0])  # QuantizeLinear takes its type


def quantize_float8(x: FLOAT, scale: FLOAT) -> FLOAT8E4M3FN:
    """One scale for the whole tensor."""
    return opset19.QuantizeLinear(x, scale, opset19.Constant(value=ZERO))


def dequantize_float8(values: FLOAT8E4M3FN, scale: FLOAT) -> FLOAT:
    """A scale `[]`, or `[C]` along the first axis."""
    return opset19.DequantizeLinear(values, scale, axis=0)


def dequantize_groups(
    values: INT8, scale: FLOAT, zero_point: None, low: int, high: int, dtype: int, group: int, output: int
) -> FLOAT:
    """Groups along the second axis; `pack_int4` stores the values."""
    return opset21.DequantizeLinear(values, scale, axis=1, block_size=group)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    float8.QUANTIZE: quantize_float8,
    float8.DEQUANTIZE: dequantize_float8,
    torch.ops.quantized_decomposed.dequantize_per_channel_group.default: dequantize_groups,
}

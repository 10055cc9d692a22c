"""The ONNX form of quantizing operators that torch's exporter does not write by itself: 8-bit floats, groups, float16.

The exporter reads the annotations when it runs, so they are no strings here.
"""

from collections.abc import Callable
from typing import Any

import onnx
import torch
import torch.ao.quantization.fx._decomposed
from onnxscript import opset19, opset21
from onnxscript.onnx_types import FLOAT, FLOAT8E4M3FN, INT8, TensorType

from edgevit.export import float8

QDQ = torch.ops.quantized_decomposed
ZERO = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0])  # QuantizeLinear takes its type


def quantize(x: TensorType, scale: float, zero_point: int, low: int, high: int, dtype: int) -> TensorType:
    """The scale has the type of `x`, as QuantizeLinear asks of it; the exporter's own form writes float32."""
    return opset19.QuantizeLinear(x, opset19.CastLike(_scalar(scale), x), _typed(zero_point, dtype))


def dequantize(
    values: TensorType, scale: float, zero_point: int, low: int, high: int, dtype: int, out_dtype: int = FLOAT.dtype
) -> TensorType:
    """The type of the scale is that of the result; the exporter's own form would cast behind."""
    return opset19.DequantizeLinear(values, _typed(scale, out_dtype), _typed(zero_point, dtype))


def dequantize_channels(
    values: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    axis: int,
    low: int,
    high: int,
    dtype: int,
    out_dtype: int = FLOAT.dtype,
) -> TensorType:
    """The same with a scale `[C]`."""
    scale, zero_point = opset19.Cast(scale, to=out_dtype), opset19.Cast(zero_point, to=dtype)
    return opset19.DequantizeLinear(values, scale, zero_point, axis=axis)


def _typed(number: float, dtype: int) -> TensorType:
    return opset19.Constant(value=onnx.helper.make_tensor("number", dtype, [], [number]))


def _scalar(number: float) -> TensorType:
    return _typed(number, FLOAT.dtype)


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
    QDQ.quantize_per_tensor.default: quantize,
    QDQ.dequantize_per_tensor.default: dequantize,
    QDQ.dequantize_per_channel.default: dequantize_channels,
    float8.QUANTIZE: quantize_float8,
    float8.DEQUANTIZE: dequantize_float8,
    QDQ.dequantize_per_channel_group.default: dequantize_groups,
}

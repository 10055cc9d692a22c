"""Every ONNX operator that is imported: one table line each, one small function behind it.

A function takes the node's attributes and its inputs, and returns a tensor or a tuple of them. Inputs are tensors;
those at the places in `host` are arrays that do not depend on the image (shapes, axes, bounds); where `scalars` is set,
a constant of one element comes as a number. It raises ValueError with the reason for what it does not do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgevit.from_onnx import ops_layers as layers
from edgevit.from_onnx import ops_math as math
from edgevit.from_onnx import ops_resize as resize
from edgevit.from_onnx import ops_scatter as scatter
from edgevit.from_onnx import ops_shape as shape
from edgevit.from_onnx.editing import OWN


@dataclass(frozen=True)
class Operator:
    """How a node runs in torch."""

    run: Callable[..., Any]
    host: tuple[int, ...] = ()
    either: tuple[int, ...] = ()  # an array where it is one, else a tensor
    scalars: bool = False


OPERATORS: dict[tuple[str, str], Operator] = {
    **{("", name): Operator(math.unary(run)) for name, run in math.UNARY.items()},
    **{("", name): Operator(math.binary(run), scalars=True) for name, run in math.BINARY.items()},
    **{("", name): Operator(math.variadic(run), scalars=True) for name, run in math.VARIADIC.items()},
    **{("", f"Reduce{name}"): Operator(math.reduction(run), host=(1,)) for name, run in math.REDUCTIONS.items()},
    ("", "Where"): Operator(math.where, scalars=True),
    ("", "Clip"): Operator(math.clip, host=(1, 2)),
    ("", "Cast"): Operator(math.cast),
    ("", "CastLike"): Operator(math.cast_like),
    ("", "Mean"): Operator(math.mean, scalars=True),
    ("", "Elu"): Operator(math.elu),
    ("", "LeakyRelu"): Operator(math.leaky_relu),
    ("", "PRelu"): Operator(math.prelu),
    ("", "HardSigmoid"): Operator(math.hard_sigmoid),
    ("", "Gelu"): Operator(math.gelu),
    ("", "Softmax"): Operator(math.softmax),
    ("", "LogSoftmax"): Operator(math.log_softmax),
    ("", "ArgMax"): Operator(math.arg_max),
    ("", "ArgMin"): Operator(math.arg_min),
    ("", "CumSum"): Operator(math.cum_sum, host=(1,)),
    ("", "LpNormalization"): Operator(math.lp_normalization),
    ("", "MatMul"): Operator(math.matmul),
    ("", "Gemm"): Operator(math.gemm),
    ("", "Einsum"): Operator(math.einsum),
    ("", "TopK"): Operator(math.top_k, host=(1,)),
    ("", "Conv"): Operator(layers.conv),
    ("", "ConvTranspose"): Operator(layers.conv_transpose),
    ("", "BatchNormalization"): Operator(layers.batch_normalization),
    ("", "LayerNormalization"): Operator(layers.layer_normalization),
    ("", "InstanceNormalization"): Operator(layers.instance_normalization),
    ("", "GroupNormalization"): Operator(layers.group_normalization),
    ("", "RMSNormalization"): Operator(layers.rms_normalization),
    ("", "MaxPool"): Operator(layers.max_pool),
    ("", "AveragePool"): Operator(layers.average_pool),
    ("", "GlobalAveragePool"): Operator(layers.global_average_pool),
    ("", "GlobalMaxPool"): Operator(layers.global_max_pool),
    ("", "Attention"): Operator(layers.attention),
    ("", "Resize"): Operator(resize.resize, host=(1, 2, 3)),
    ("", "DepthToSpace"): Operator(shape.depth_to_space),
    ("", "SpaceToDepth"): Operator(shape.space_to_depth),
    ("", "Reshape"): Operator(shape.reshape, host=(1,)),
    ("", "Flatten"): Operator(shape.flatten),
    ("", "Squeeze"): Operator(shape.squeeze, host=(1,)),
    ("", "Unsqueeze"): Operator(shape.unsqueeze, host=(1,)),
    ("", "Transpose"): Operator(shape.transpose),
    ("", "Concat"): Operator(shape.concat),
    ("", "Split"): Operator(shape.split, host=(1,)),
    ("", "Slice"): Operator(shape.slice_, host=(1, 2, 3, 4)),
    ("", "Expand"): Operator(shape.expand, host=(1,)),
    ("", "Tile"): Operator(shape.tile, host=(1,)),
    ("", "Pad"): Operator(shape.pad, host=(1, 2, 3)),
    ("", "Gather"): Operator(shape.gather, either=(1,)),
    ("", "GatherElements"): Operator(shape.gather_elements),
    ("", "GatherND"): Operator(shape.gather_nd),
    ("", "Trilu"): Operator(shape.trilu, host=(1,)),
    ("", "ScatterElements"): Operator(scatter.scatter_elements),
    ("", "ScatterND"): Operator(scatter.scatter_nd),
    (OWN, "NonZero"): Operator(scatter.kept),
    (OWN, "ScatterRows"): Operator(scatter.scatter_rows),
    (OWN, "Linear"): Operator(layers.linear),
    (OWN, "Attention"): Operator(layers.fused_attention),
}

DEPENDS = "its output's shape depends on the image, and engines need static shapes"
QUANTIZED = "the file is quantized already; give the float model, and quantize it with --int8 --calib DATA"
REFUSED = {
    "NonZero": DEPENDS, "Compress": DEPENDS, "Unique": DEPENDS, "NonMaxSuppression": DEPENDS,
    "Loop": "its number of rounds is not known before it runs", "Scan": "loops are not imported",
    "QuantizeLinear": QUANTIZED, "DequantizeLinear": QUANTIZED, "DynamicQuantizeLinear": QUANTIZED,
    "QLinearMatMul": QUANTIZED, "QLinearConv": QUANTIZED, "MatMulInteger": QUANTIZED, "ConvInteger": QUANTIZED,
}  # fmt: skip


def why_not(domain: str, op: str) -> str:
    """Why an operator outside the table is not imported."""
    if op in REFUSED:
        return REFUSED[op]
    return f"{domain + '.' if domain else ''}{op} is not among the operators that are imported"

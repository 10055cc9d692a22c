"""What targets `trt` and `trt-rtx` share: one strongly typed ONNX that TensorRT 10, 11 and RTX read alike.

Types are in the file (float16 by `to_half`, 8 and 4 bits as Q/DQ with zero points 0), so no builder flag chooses any.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevit.errors import missing_extra
from edgevit.export.to_half import to_half
from edgevit.export.to_onnx import to_onnx
from edgevit.quant.flow import operator, shape
from edgevit.quant.policies import POLICIES
from edgevit.runtimes.base import Policy
from edgevit.stages import Graph, Refusal

ONNX = "model.onnx"
CHECKED_BY = "the ONNX that the engine is built from, as written, in ONNX Runtime"
NUMBERS = "the numbers of the engine: its kernels sum in another order, and fused ones round elsewhere"
POLICY = Policy(
    precisions=("fp32", "fp16", "int8", "int8+fp16", "int8+fp32", "fp8", "w4"),
    others=("fp8", "w4"),
    int8="int8",
    scheme=POLICIES["tensorrt"],
    rewrites=("fold_batch_norm", "fold_layer_scale"),  # the attention scale stays: TensorRT wants it on q and k
    lowering="gather",
    # fp32: other summation order. fp16 keeps 11 bits of mantissa and rounds at every operator; a rounded key may pick
    # another, nearly equal, token: judged by agreement like 8 bits.
    tolerance={"fp32": 1e-4, "fp16": None, "int8+fp16": None, "int8+fp32": None, "fp8": None, "w4": None},
)
MOST_TOP_K = 3840
"""TensorRT's TopK takes no larger k (its operator documentation)."""


def resolve(precision: str) -> str:
    """`int8` leaves the rest in float16, as `fp8` and `w4` do: kernels that read both are the ones TensorRT has."""
    return "int8+fp16" if precision == "int8" else precision


def refused(graph: Graph) -> list[Refusal]:
    """Operators over a limit that the parser of a GPU-less build does not test."""
    sorts = [n for n in graph.program.graph.nodes if n.op == "call_function" and operator(n) == "topk"]
    reason = f"TopK with k={{}} is over TensorRT's limit of {MOST_TOP_K}; keep fewer tokens, or take a smaller input"
    return [Refusal(f"{n.name} (topk)", reason.format(n.args[1])) for n in sorts if shape(n)[-1] > MOST_TOP_K]


def write(graph: Graph, folder: Path, precision: str) -> None:
    """`model.onnx` in `folder`."""
    to_onnx(graph if precision.endswith("fp32") else to_half(graph), folder / ONNX)


def onnx_version() -> str:
    """Of the package that writes the file. Raises MissingExtra."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise missing_extra("onnx", error) from error
    return str(onnx.__version__)


def complaint(parser: Any, name: str) -> str:
    """The parser's first refusal in one line: node, operator, reason, what to do."""
    error = parser.get_error(0)
    reason = " ".join(str(error.desc()).split())
    if "same input types" in reason or "Half and Float" in reason:
        advice = "two types meet here, which edgevit must not write: report it"
    elif "ero point" in reason:
        advice = "quantize with zero points 0 (--int8 of this target does)"
    else:
        advice = "take another form of this operator in the model, or target onnx and a plugin of your own"
    return f"{name} refuses {error.node_operator()} {error.node_name()}: {reason}; {advice}"

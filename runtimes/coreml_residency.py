"""Where Core ML will probably run each operator: Neural Engine, GPU or CPU, with the reason. A forecast, not a fact.

Apple publishes no list; the placement differs between chips and systems. What is known in public: the Neural Engine
computes in float16 (with int8 beside it), on tensors of at most five axes; int32 and float32 leave it; so do top-k,
sorting and gathering, each crossing costing up to milliseconds. A device tells: Xcode's performance report, or
`MLComputePlan` in an app.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from edgevit.runtimes.mil_file import Constant, Declared, Program

MOST_AXES = 5
NEURAL_ENGINE = frozenset({
    "add", "sub", "mul", "real_div", "maximum", "minimum", "pow", "abs", "sqrt", "rsqrt", "square", "exp", "log",
    "erf", "clip", "inverse", "linear", "matmul", "conv", "conv_transpose", "avg_pool", "max_pool", "layer_norm",
    "batch_norm", "instance_norm", "l2_norm", "softmax", "gelu", "relu", "relu6", "leaky_relu", "silu", "sigmoid",
    "sigmoid_hard", "tanh", "softplus", "reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_l2_norm",
    "reduce_sum_square", "slice_by_index", "slice_by_size", "split", "concat", "stack", "reshape", "transpose",
    "expand_dims", "squeeze", "pad", "pixel_shuffle", "pixel_unshuffle", "upsample_bilinear",
    "upsample_nearest_neighbor", "quantize", "dequantize", "tile", "identity", "einsum",
})  # fmt: skip
ELSEWHERE = {
    "topk": ("CPU", "top-k has no Neural Engine form"),
    "argsort": ("CPU", "sorting has no Neural Engine form"),
    "gather": ("CPU or GPU", "gathering leaves the Neural Engine"),
    "gather_along_axis": ("CPU or GPU", "gathering leaves the Neural Engine"),
    "gather_nd": ("CPU or GPU", "gathering leaves the Neural Engine"),
    "reduce_argmax": ("CPU or GPU", "indices are integers"),
    "reduce_argmin": ("CPU or GPU", "indices are integers"),
    "cast": ("CPU or GPU", "a change of type is where units meet"),
    "cumsum": ("CPU or GPU", "a running sum is sequential"),
    "scaled_dot_product_attention": ("GPU", "the fused operator is made for the GPU; attention=products avoids it"),
}
FLOAT16, ENGINE = {"FLOAT16", "INT8", "UINT8"}, "Neural Engine"


@dataclass(frozen=True)
class Row:
    """One operator of the saved program."""

    name: str
    operator: str
    unit: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """For residency.json."""
        return asdict(self)


def forecast(program: Program) -> list[Row]:
    """One row for each operator that computes; constants, compressed weights included, are none."""
    declared: dict[str, Declared] = dict(program.inputs)
    rows = []
    for operation in program.operations:
        declared |= operation.outputs
        if operation.kind.startswith("const"):
            continue
        names = [n for v in operation.inputs.values() for n in (v if isinstance(v, tuple) else (v,))]
        computed = [declared[n] for n in names if not isinstance(n, Constant)]
        unit, reason = _place(operation.kind, [d for _, d in operation.outputs], computed)
        rows.append(Row(operation.outputs[0][0], operation.kind, unit, reason))
    return rows


def _place(kind: str, outputs: Sequence[Declared], inputs: Sequence[Declared]) -> tuple[str, str]:
    """Unit and reason of one operator."""
    types = {d.dtype for d in outputs}
    if kind in ELSEWHERE:
        return ELSEWHERE[kind]
    if "FLOAT32" in types:
        return "CPU or GPU", "float32; the Neural Engine computes in float16"
    if not types <= FLOAT16:
        return "CPU or GPU", f"{', '.join(sorted(types - FLOAT16)).lower()} values"
    axes = max(len(d.shape) for d in (*outputs, *inputs))
    if axes > MOST_AXES:
        return "CPU or GPU", f"{axes} axes; the Neural Engine has {MOST_AXES}"
    if kind in NEURAL_ENGINE:
        return ENGINE, "float16 or int8, and an operator it has"
    return "unknown", "nothing is known in public about this operator"


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """For the manifest: operators by unit, why some leave the Neural Engine (reason → operators), and how often."""
    away: dict[str, Counter[str]] = {}
    for row in rows:
        if row.unit != ENGINE:
            away.setdefault(row.reason, Counter())[row.operator] += 1
    inside = [row.unit == ENGINE for row in rows]
    return {
        "kind": "forecast",
        "operators": dict(Counter(row.unit for row in rows)),
        "not_on_neural_engine": {reason: dict(counts) for reason, counts in away.items()},
        "crossings": sum(a and not b for a, b in pairwise(inside)),
    }

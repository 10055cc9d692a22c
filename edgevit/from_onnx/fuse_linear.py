"""MatMul with a constant, and Add: one Linear, which quantizers and engines know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgevit.from_onnx.editing import OWN, Editor, Pattern, attribute, drop_unread

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from edgevit.from_onnx.read import Foreign

PRODUCT = ("MatMul", "x", "weight")
SUM = ("Add", PRODUCT, "bias")


def fuse_linear(foreign: Foreign) -> int:
    """MatMul(x, W [in, out]) + b, or Gemm(x, W, b)  becomes  edgevit.Linear(x, Wᵀ [out, in], b); how many."""
    count = 0
    for pattern in (SUM, PRODUCT):  # first with what stands behind it
        editor = Editor(foreign)
        turned: dict[Any, Any] = {}
        count += sum(_fuse(editor, node, pattern, turned) for node in foreign.model.graph.node)
        drop_unread(foreign)
    return count


def _fuse(editor: Editor, node: onnx.NodeProto, pattern: Pattern, turned: dict[str, str]) -> bool:
    found: Any = editor.match(node.output[0], pattern)
    transposed = False
    if node.op_type == "Gemm":
        plain = (
            not attribute(node, "transA", 0) and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
        )
        found = dict(zip(("x", "weight", "bias"), node.input, strict=False)) if plain else None
        transposed = bool(attribute(node, "transB", 0))
    if not found:
        return False
    weight = editor.value(found["weight"])
    if weight is None or weight.ndim != 2 or editor.value(found["x"]) is not None:
        return False
    rows = weight.shape[0] if transposed else weight.shape[1]
    operands = [found["x"], found["weight"] if transposed else _turned(editor, found["weight"], weight, turned)]
    if "bias" in found:
        bias = editor.value(found["bias"])
        if bias is None or bias.shape != (rows,):
            return False
        operands.append(found["bias"])
    editor.replace(node, "Linear", operands, domain=OWN)
    return True


def _turned(editor: Editor, name: str, weight: np.ndarray, turned: dict[str, str]) -> str:
    """The name of the weight as `[out, in]`; its readers share one."""
    import numpy as np

    if name not in turned:
        turned[name] = editor.add(name + "_t", np.ascontiguousarray(weight.T))
    return turned[name]

"""Exporters before opset 17 write LayerNorm as its formula; engines have an operator, and float16 needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.from_onnx.editing import Editor, Pattern, attribute, drop_unread, shapes

if TYPE_CHECKING:
    import onnx

    from edgevit.from_onnx.read import Foreign, Shapes

CENTRED = ("Sub", "x", ("ReduceMean:mean", "x"))
VARIANCES = (("ReduceMean:variance", ("Pow", CENTRED, 2.0)), ("ReduceMean:variance", ("Mul", CENTRED, CENTRED)))
ROOTS = tuple(("Sqrt", ("Add", variance, "epsilon")) for variance in VARIANCES)
NORMED = tuple(p for root in ROOTS for p in (("Div", CENTRED, root), ("Mul", CENTRED, ("Reciprocal", root))))
AFFINE = tuple(("Add", ("Mul", normed, "scale"), "bias") for normed in NORMED)


def fuse_layer_norm(foreign: Foreign) -> int:
    """(x - mean) / sqrt(mean((x - mean)²) + ε) * scale + bias  becomes  LayerNormalization(x, scale, bias)."""
    count = 0
    for patterns in (AFFINE, NORMED):  # first with what stands behind it
        editor, known = Editor(foreign), shapes(foreign)
        count += sum(_fuse(editor, node, patterns, known) for node in foreign.model.graph.node)
        drop_unread(foreign)
    return count


def _fuse(editor: Editor, node: onnx.NodeProto, patterns: tuple[Pattern, ...], known: Shapes) -> bool:
    import numpy as np

    if node.op_type not in ("Add", "Div", "Mul"):
        return False
    found = next((f for p in patterns if (f := editor.match(node.output[0], p))), None)
    epsilon = None if found is None else editor.scalar(found["epsilon"])
    if found is None or epsilon is None:
        return False
    shape = known.get(found["x"])
    if not all(_over_last_axis(editor, found[mean], shape) for mean in ("@mean", "@variance")):
        return False
    if "scale" in found:
        scale, bias = editor.value(found["scale"]), editor.value(found["bias"])
        if scale is None or bias is None or scale.ndim != 1 or scale.shape != bias.shape:
            return False
        operands = [found["scale"], found["bias"]]
    elif shape and shape[-1] is not None:
        operands = [editor.add(node.output[0] + "_ones", np.ones(shape[-1], np.float32))]
    else:
        return False
    editor.replace(node, "LayerNormalization", [found["x"], *operands], axis=-1, epsilon=epsilon)
    return True


def _over_last_axis(editor: Editor, node: onnx.NodeProto, shape: tuple[int | None, ...] | None) -> bool:
    axes = editor.value(node.input[1]) if len(node.input) > 1 else None
    if axes is None or axes.size != 1 or not attribute(node, "keepdims", 1):
        return False
    axis = int(axes.reshape(()))
    return axis == -1 or (shape is not None and axis == len(shape) - 1)

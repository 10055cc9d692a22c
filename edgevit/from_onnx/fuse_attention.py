"""softmax(q kᵀ · scale + mask) v, which engines compute as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgevit.from_onnx.editing import OWN, Editor, attribute, shapes

if TYPE_CHECKING:
    import onnx

    from edgevit.from_onnx.read import Foreign, Shapes

# Each with how the attention's scale follows from its constants.
PRODUCTS: tuple[tuple[Any, str], ...] = (
    (("Mul", ("MatMul", "q", "kt"), "times"), "times"),
    (("Div", ("MatMul", "q", "kt"), "by"), "by"),
    (("MatMul", ("Mul", "q", "times"), ("Mul", "kt", "again")), "times again"),  # torch's own scaled_dot_product
    (("MatMul", ("Mul", "q", "times"), "kt"), "times"),
    (("MatMul", ("Div", "q", "by"), "kt"), "by"),
    (("MatMul", "q", "kt"), ""),
)
RANK = 4  # [B, H, N, d]: what engines take as one operator


def fuse_attention(foreign: Foreign) -> int:
    """MatMul(Softmax(MatMul(q, kᵀ) * scale + mask), v)  becomes  edgevit.Attention(q, kᵀ, v, mask); how many."""
    editor, known = Editor(foreign), shapes(foreign)
    return sum(_fuse(editor, node, known) for node in foreign.model.graph.node if node.op_type == "MatMul")


def _fuse(editor: Editor, node: onnx.NodeProto, known: Shapes) -> bool:
    for logits, parts in PRODUCTS:
        for masked in (False, True):
            inner = ("Add", logits, "mask") if masked else logits
            found = editor.match(node.output[0], ("MatMul", ("Softmax:softmax", inner), "v"))
            if not found:
                continue
            scale = _scale(editor, found, parts)
            ranks = {len(known.get(found[name], ())) for name in ("q", "kt", "v")}
            if scale is None or ranks != {RANK} or attribute(found["@softmax"], "axis", -1) not in (-1, RANK - 1):
                continue
            inputs = [found["q"], found["kt"], found["v"], *([found["mask"]] if masked else [])]
            editor.replace(node, "Attention", inputs, domain=OWN, scale=scale)
            return True
    return False


def _scale(editor: Editor, found: Any, parts: str) -> float | None:
    """The product of the constants; None where one is no constant."""
    scale = 1.0
    for name in parts.split():
        value = editor.scalar(found[name])
        if value is None or value == 0:
            return None
        scale = scale / value if name == "by" else scale * value
    return scale

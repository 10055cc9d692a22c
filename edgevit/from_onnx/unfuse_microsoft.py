"""What ONNX Runtime's optimizer fused for transformers (domain com.microsoft) becomes ONNX's own operators again.

The passes behind this one, and what takes a ViT apart, know those.
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from edgevit.errors import LoadError
from edgevit.from_onnx.editing import Editor, attribute, put_in_front, shapes
from edgevit.from_onnx.read import MICROSOFT, label

if TYPE_CHECKING:
    import onnx

    from edgevit.from_onnx.read import Foreign, Shapes

FLOAT = 1  # onnx.TensorProto
ATTENTION_BIAS = 5  # its input, in both attentions
HEADS_FIRST, KEYS_TURNED = [0, 2, 1, 3], [0, 2, 3, 1]


def unfuse_microsoft(foreign: Foreign) -> int:
    """Attention(x, W, b)  becomes  MatMul, Add, Split, heads, MatMul, Mul, Softmax, MatMul; and so on; how many.

    Raises LoadError for a form that is not imported.
    """
    nodes = _fused(foreign, *(op for op in UNFUSED if op != "FusedMatMul"))
    _take_apart(foreign, nodes, {})
    count = len(nodes)
    while nodes := _fused(foreign, "FusedMatMul"):  # ONNX infers ranks as far as the first of them
        known = shapes(foreign)
        nodes = [n for n in nodes if all(name in known for name in n.input[:2])] or nodes
        _take_apart(foreign, nodes, known)
        count += len(nodes)
    return count


def _fused(foreign: Foreign, *operators: str) -> list[onnx.NodeProto]:
    return [n for n in foreign.model.graph.node if n.domain == MICROSOFT and n.op_type in operators]


def _take_apart(foreign: Foreign, nodes: list[onnx.NodeProto], known: Shapes) -> None:
    editor, front = Editor(foreign), {}
    for node in nodes:
        pieces = Pieces(editor, node, known)
        UNFUSED[node.op_type](pieces)
        front[node.output[0]] = pieces.nodes
    put_in_front(foreign, front)


class Pieces:
    """The nodes that stand in front of one that is taken apart, which becomes the last of them."""

    def __init__(self, editor: Editor, node: onnx.NodeProto, known: Shapes) -> None:
        self.editor, self.node, self.known = editor, node, known
        self.name, self.inputs = label(node), list(node.input)
        self.nodes: list[onnx.NodeProto] = []

    def has(self, place: int) -> bool:
        """Whether an optional input is given."""
        return len(self.inputs) > place and bool(self.inputs[place])

    def read(self, place: int) -> bool:
        """Whether anything reads an output."""
        return self.editor.read(self.node, place)

    def add(self, op: str, inputs: list[str], outputs: int = 1, output: str = "", **attributes: Any) -> list[str]:
        """A node in front; its outputs."""
        from onnx import helper

        stem = f"{self.name}/{op}_{len(self.nodes)}"
        names = [output] if output else [stem if outputs == 1 else f"{stem}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, stem, **attributes))
        return names

    def one(self, op: str, inputs: list[str], **attributes: Any) -> str:
        """A node of one output."""
        return self.add(op, inputs, **attributes)[0]

    def constant(self, value: Any) -> str:
        """A constant's name."""
        return self.editor.add(f"{self.name}/known", np.asarray(value))

    def end(self, op: str, inputs: list[str], **attributes: Any) -> None:
        """What the node itself becomes."""
        self.editor.replace(self.node, op, inputs, **attributes)
        del self.node.output[1:]

    def refuse(self, why: str) -> NoReturn:
        """Raise LoadError."""
        raise LoadError(f"{self.editor.foreign.name}: node {self.name} (com.microsoft.{self.node.op_type}): {why}")


def gelu(pieces: Pieces) -> None:
    """Gelu(x), BiasGelu(x, b), FastGelu(x, b)  becomes  Gelu(x + b)."""
    x = pieces.one("Add", pieces.inputs[:2]) if pieces.has(1) else pieces.inputs[0]
    pieces.end("Gelu", [x], approximate="tanh" if pieces.node.op_type == "FastGelu" else "none")


def quick_gelu(pieces: Pieces) -> None:
    """QuickGelu(x)  becomes  x * sigmoid(alpha * x)."""
    x, alpha = pieces.inputs[0], attribute(pieces.node, "alpha", 1.702)
    pieces.end("Mul", [x, pieces.one("Sigmoid", [pieces.one("Mul", [x, pieces.constant(np.float32(alpha))])])])


def skip_layer_normalization(pieces: Pieces) -> None:
    """SkipLayerNormalization(x, s, w, b, c)  becomes  LayerNormalization(x + s + c, w, b); output 3 is the sum."""
    total = pieces.one("Add", pieces.inputs[:2])
    if pieces.has(4):
        total = pieces.one("Add", [total, pieces.inputs[4]])
    if pieces.read(3):
        pieces.add("Identity", [total], output=pieces.node.output[3])
    scale = [pieces.inputs[2], *(pieces.inputs[3:4] if pieces.has(3) else [])]
    _layer_norm(pieces, [total, *scale], 1e-12)


def layer_normalization(pieces: Pieces) -> None:
    """What `read` found under ONNX's name before ONNX had it."""
    _layer_norm(pieces, pieces.inputs, 1e-5)


def _layer_norm(pieces: Pieces, inputs: list[str], epsilon: float) -> None:
    if pieces.read(1) or pieces.read(2):
        pieces.refuse("the mean and the deviation are not imported")
    axis, epsilon = (attribute(pieces.node, *default) for default in (("axis", -1), ("epsilon", epsilon)))
    pieces.end("LayerNormalization", inputs, axis=axis, epsilon=epsilon)


def packed_attention(pieces: Pieces) -> None:
    """Attention(x, W, b): one product makes queries, keys and values `[B, N, H * d]`."""
    refuse_given(pieces, {3: "a mask of lengths", 4: "cached keys", 6: "cached lengths"})
    product = pieces.one("MatMul", pieces.inputs[:2])
    if pieces.has(2):
        product = pieces.one("Add", [product, pieces.inputs[2]])
    sizes = attribute(pieces.node, "qkv_hidden_sizes")
    if sizes:
        q, k, v = pieces.add("Split", [product, pieces.constant(np.array(sizes, np.int64))], 3, axis=-1)
    else:
        q, k, v = pieces.add("Split", [product], 3, axis=-1, num_outputs=3)
    attend(pieces, q, k, v)


def multi_head_attention(pieces: Pieces) -> None:
    """MultiHeadAttention(q, k, v, b): `[B, N, H * d]` each."""
    if not (pieces.has(1) and pieces.has(2)):
        pieces.refuse("packed queries, keys and values are not imported; give them apart")
    refuse_given(pieces, {4: "a mask of lengths", 6: "cached keys", 7: "cached values", 8: "cached lengths"})
    q, k, v = pieces.inputs[:3]
    if pieces.has(3):
        biases = pieces.add("Split", [pieces.inputs[3]], 3, axis=0, num_outputs=3)
        q, k, v = (pieces.one("Add", [x, b]) for x, b in zip((q, k, v), biases, strict=True))
    attend(pieces, q, k, v)


def refuse_given(pieces: Pieces, names: dict[int, str]) -> None:
    """Raise LoadError for an input or a switch that changes what attention computes."""
    given = [what for place, what in names.items() if pieces.has(place)]
    given += [name for name in ("unidirectional", "do_rotary") if attribute(pieces.node, name, 0)]
    if given or any(pieces.read(place) for place in range(1, len(pieces.node.output))):
        pieces.refuse(f"{given[0] if given else 'an output of keys and values'} is not imported")


def attend(pieces: Pieces, q: str, k: str, v: str) -> None:
    """softmax(q kᵀ · scale + bias) v, heads side by side."""
    count = attribute(pieces.node, "num_heads")
    split = pieces.constant(np.array([0, 0, count, -1], np.int64))
    heads = [pieces.one("Reshape", [x, split]) for x in (q, k, v)]
    turns = (HEADS_FIRST, KEYS_TURNED, HEADS_FIRST)
    first, keys, values = (pieces.one("Transpose", [x], perm=p) for x, p in zip(heads, turns, strict=True))
    scale = attribute(pieces.node, "scale", 0.0)
    if scale:
        by = pieces.constant(np.float32(scale))
    else:  # of heads whose size `fix_shapes` knows
        size = pieces.one("Cast", [pieces.one("Shape", [first], start=3)], to=FLOAT)
        by = pieces.one("Reciprocal", [pieces.one("Sqrt", [size])])
    logits = pieces.one("Mul", [pieces.one("MatMul", [first, keys]), by])
    if pieces.has(ATTENTION_BIAS):
        logits = pieces.one("Add", [logits, pieces.inputs[ATTENTION_BIAS]])
    attended = pieces.one("MatMul", [pieces.one("Softmax", [logits], axis=-1), values])
    joined = pieces.constant(np.array([0, 0, -1], np.int64))
    pieces.end("Reshape", [pieces.one("Transpose", [attended], perm=HEADS_FIRST), joined])


def fused_matmul(pieces: Pieces) -> None:
    """FusedMatMul(a, b)  becomes  alpha * MatMul(aᵀ, bᵀ)."""
    if any(attribute(pieces.node, f"transBatch{side}", 0) for side in "AB"):
        pieces.refuse("transBatchA and transBatchB are not imported")
    sides = []
    for side, name in zip("AB", pieces.inputs[:2], strict=True):
        if attribute(pieces.node, f"trans{side}", 0):
            rank = len(pieces.known.get(name, ()))
            if rank < 2:
                pieces.refuse(f"the rank of {name}, which it turns, is not known; export it with fixed shapes")
            name = pieces.one("Transpose", [name], perm=[*range(rank - 2), rank - 1, rank - 2])
        sides.append(name)
    alpha = attribute(pieces.node, "alpha", 1.0)
    if alpha == 1.0:
        pieces.end("MatMul", sides)
    else:
        pieces.end("Mul", [pieces.one("MatMul", sides), pieces.constant(np.float32(alpha))])


UNFUSED: dict[str, Callable[[Pieces], None]] = {
    "Gelu": gelu,
    "BiasGelu": gelu,
    "FastGelu": gelu,
    "QuickGelu": quick_gelu,
    "LayerNormalization": layer_normalization,
    "SkipLayerNormalization": skip_layer_normalization,
    "Attention": packed_attention,
    "MultiHeadAttention": multi_head_attention,
    "FusedMatMul": fused_matmul,
}

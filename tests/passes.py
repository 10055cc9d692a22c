"""Each pass on foreign ONNX, drawn: the smallest graph it is for, and what the pass itself makes of it.

    python tests/passes.py        writes docs/foreign-onnx-passes.md (`make passes`): a second

A graph here is written as the passes in front leave it, so that a picture shows one pass alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also where PYTHONSAFEPATH keeps it off
from tests.pages import fill

SHOWN_NUMBERS = 4  # of a constant; a larger one is its name and shape
WIDEST = 140  # characters of a line
IMAGE = "float[1, 3, 2, 4] x"


@dataclass(frozen=True)
class Picture:
    """A graph in ONNX's own grammar: inputs, constants, nodes that make y. keep: tokens of each mask.

    first: passes that run before it is drawn, for one that stands on what they write.
    """

    x: str
    nodes: str
    constants: str = ""
    y: str = "float[] y"
    opset: int = 20
    keep: tuple[float, ...] | None = None
    functions: str = ""
    first: tuple[str, ...] = ()


PICTURES = {
    "inline_functions": Picture(
        "float[2] x", "y = own.twice(x)",
        functions='<domain: "own", opset_import: ["" : 20]> twice (a) => (b) { b = Add(a, a) }', y="float[2] y",
    ),
    "convert_opset": Picture("float[2, 4] x", "m = ReduceMean <axes = [-1]> (x) y = Sub(x, m)", opset=11),
    "one_float_type": Picture(
        "float16[2] x", "a = Mul(x, w) y = Cast <to = 11> (a)", "float16[2] w = {15360, 16384}", "double[2] y"
    ),
    "fold_constants": Picture(
        "float[2, 4] x", "t = Transpose <perm = [1, 0]> (w) d = Add(t, t) y = MatMul(x, d)",
        "float[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}",
    ),
    "unfuse_microsoft": Picture(
        "float[1, 5, 4] x",
        "a = com.microsoft.Attention <num_heads = 2> (x, w, b) y = com.microsoft.SkipLayerNormalization(a, x, s)",
        f"float[4, 12] w = {{{', '.join(['1'] * 48)}}}, float[12] b = {{{', '.join(['1'] * 12)}}}, "
        "float[4] s = {1, 1, 1, 1}",
        "float[1, 5, 4] y",
    ),
    "unique_places": Picture(
        "float[3, 8] x", "d = ArgMin <axis = 1, keepdims = 0> (x) u = Unique(d) y = Cast <to = 1> (u)", y="float[k] y"
    ),
    "static_counts": Picture(
        IMAGE, "m = Greater(x, t) n = NonZero(m) p = Transpose <perm = [1, 0]> (n) y = GatherND(x, p)",
        "float t = {0.5}", "float[k] y", keep=(6,),
    ),
    "fix_shapes": Picture(
        "float[n, 3, 2, 4] x",
        "s = Shape(x) b = Gather(s, first) d = Gather(s, last) f = Cast <to = 1> (d) r = Sqrt(f) z = Div(x, r) "
        "j = Concat <axis = 0> (b, rest, d) y = Reshape(z, j)",
        "int64[1] first = {0}, int64[1] rest = {-1}, int64[1] last = {3}", "float[n, k, 4] y",
    ),
    "drop_identities": Picture(
        "float[2, 4] x", "i = Identity(x) d = Dropout(i) c = Cast <to = 1> (d) m = Mul(c, one) y = Relu(m)",
        "float one = {1.0}",
    ),
    "scatter_rows": Picture(
        "float[1, 8, 4] x, int64[1, 3, 1] i, float[1, 3, 4] v",
        'e = Expand(i, all) y = ScatterElements <axis = 1, reduction = "add"> (x, e, v)',
        "int64[3] all = {1, 3, 4}",
    ),
    "unflatten_softmax": Picture(
        "float[1, 2, 5, 5] x", "f = Flatten <axis = 3> (x) p = Softmax <axis = -1> (f) y = Reshape(p, s)",
        "int64[4] s = {1, 2, 5, 5}",
    ),
    "drop_open_masks": Picture(
        "float[2, 2] x",
        "w = Where(open, zero, low) a = Add(x, w) s = Softmax(a) n = IsNaN(s) q = Where(n, zero, s) y = Neg(q)",
        "bool[1, 2] open = {1, 1}, float zero = {0}, float low = {-1e38}",
    ),
    "fuse_layer_norm": Picture(
        "float[2, 4] x",
        "m = ReduceMean(x, last) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, last) e = Add(v, epsilon) "
        "r = Sqrt(e) n = Div(d, r) s = Mul(n, w) y = Add(s, b)",
        "int64[1] last = {-1}, float two = {2}, float epsilon = {0.001}, float[4] w = {1, 2, 3, 4}, "
        "float[4] b = {4, 3, 2, 1}",
    ),
    "fuse_gelu": Picture(
        "float[2, 4] x", "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
        "float root = {1.4142135}, float one = {1}, float half = {0.5}",
    ),
    "fuse_attention": Picture(
        "float[1, 2, 5, 4] q, float[1, 2, 4, 5] k, float[1, 2, 5, 4] v",
        "l = MatMul(q, k) z = Mul(l, scale) p = Softmax <axis = -1> (z) y = MatMul(p, v)", "float scale = {0.5}",
    ),
    "fuse_linear": Picture(
        "float[2, 4] x", "p = MatMul(x, w) y = Add(p, b)",
        "float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] b = {1, 2, 3}",
    ),
    "unflatten_rows": Picture(
        IMAGE,
        "t = Reshape(x, tokens) r = Reshape(t, rows) l = Gemm(r, w, b) g = Gelu(l) v = Reshape(g, wide) y = Relu(v)",
        "int64[3] tokens = {1, 6, 4}, int64[2] rows = {6, 4}, int64[3] wide = {1, 6, 2}, "
        "float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] b = {1, 2}",
        first=("fix_shapes", "fuse_linear"),
    ),
}  # fmt: skip


def drawn(name: str) -> tuple[str, int]:
    """What a pass makes of its picture's graph, as two columns; how often it matched."""
    import numpy as np

    from edgevit.from_onnx.clean import PASSES
    from edgevit.from_onnx.editing import drop_unread
    from edgevit.from_onnx.fix_input import fix_input
    from edgevit.from_onnx.keep import Keep
    from edgevit.from_onnx.read import read
    from edgevit.names import named

    picture = PICTURES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(parsed(picture).SerializeToString())
        foreign = read(path)
    if "3, 2, 4] x" in picture.x:
        image = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
        foreign = replace(fix_input(foreign, None, None), keep=Keep(picture.keep, [image]))
    for each in picture.first:
        named(PASSES[each])(foreign)
    shown = shown_shapes(foreign)
    before = list(lines(foreign.model, shown))
    count = named(PASSES[name])(foreign)
    drop_unread(foreign)
    shown |= shown_shapes(foreign)
    after = list(lines(foreign.model, shown))
    return beside(before, after), count


def beside(before: list[str], after: list[str]) -> str:
    """Two columns; one below the other where they are too wide."""
    width = max(map(len, before)) + 3
    if width + max(map(len, after)) > WIDEST:
        return "\n".join([*before, "", "becomes", "", *after])
    return "\n".join(f"{a:<{width}}{b}".rstrip() for a, b in zip_longest(before, after, fillvalue=""))


def parsed(picture: Picture) -> Any:
    """The model of a picture."""
    import onnx

    constants = f"<{picture.constants}>" if picture.constants else ""
    domains = '"com.microsoft" : 1' + (', "own" : 1' if picture.functions else "")
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {picture.opset}, {domains}]> '
        f"g ({picture.x}) => ({picture.y}) {constants} {{ {picture.nodes} }} {picture.functions}"
    )
    if picture.y == "float[] y":
        inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type
        model.graph.output[0].type.CopyFrom(inferred)
    return model


def shown_shapes(foreign: Any) -> dict[str, str]:
    """Value → its shape as it is drawn, behind its type where that is not float32."""
    import onnx

    found: dict[str, str] = {}
    inferred = onnx.shape_inference.infer_shapes(foreign.model).graph
    for value in [*inferred.value_info, *inferred.input, *inferred.output]:
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            element = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
            sizes = [str(d.dim_value) if d.HasField("dim_value") else "?" for d in kind.shape.dim]
            found[value.name] = f"{'' if element == 'float' else element}[{', '.join(sizes)}]"
    for name, shape in foreign.shapes.items():
        if "?" in found.get(name, "?"):
            found[name] = f"[{', '.join('?' if s is None else str(s) for s in shape)}]"
    return found


def lines(model: Any, shown: dict[str, str]) -> Iterator[str]:
    """A line an input and a node, with the shape that it makes; small constants as numbers."""
    import onnx
    from onnx import helper, numpy_helper

    known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}

    def operand(name: str) -> str:
        value = known.get(name)
        return name if value is None else number(value) if value.size <= SHOWN_NUMBERS else f"{name}{list(value.shape)}"

    def number(value: Any) -> str:
        if value.ndim:
            return f"[{', '.join(map(number, value.reshape(-1)))}]"
        return f"{value.item():.4g}" if value.dtype.kind == "f" else str(value.item())

    def given(value: Any) -> str:
        if isinstance(value, onnx.TensorProto):
            return number(numpy_helper.to_array(value))
        if isinstance(value, bytes):
            return value.decode()
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    def called(node: Any) -> str:
        inputs = [operand(name) for name in node.input]
        inputs += [f"{a.name}={given(helper.get_attribute_value(a))}" for a in node.attribute]
        return f"{node.domain + '.' if node.domain else ''}{node.op_type}({', '.join(inputs)})"

    for value in model.graph.input:
        yield f"{value.name} {shown[value.name]}"
    for node in model.graph.node:
        yield f"{', '.join(node.output)} {shown.get(node.output[0], '')} = {called(node)}".replace("  =", " =")
    for function in model.functions:
        for node in function.node:
            yield f"{function.name}: {', '.join(node.output)} = {called(node)}"


def section(name: str, picture: str) -> str:
    """A pass's name, contract and picture."""
    from edgevit.from_onnx.clean import PASSES
    from edgevit.names import named

    contract = " ".join((named(PASSES[name]).__doc__ or "").split())
    return f"## {name}\n\n{contract}\n\n```text\n{picture}\n```"


if __name__ == "__main__":
    fill("foreign-onnx-passes.md", "make passes", "\n\n".join(section(name, drawn(name)[0]) for name in PICTURES))

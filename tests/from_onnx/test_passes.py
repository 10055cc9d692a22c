"""Each pass on the smallest graph it is for: what stands there afterwards, and where it must not match."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgevit.errors import LoadError
from edgevit.from_onnx.clean import PASSES, clean
from edgevit.from_onnx.convert_opset import OPSET
from edgevit.from_onnx.editing import drop_unread
from edgevit.from_onnx.fix_input import fix_input
from edgevit.from_onnx.read import read
from edgevit.names import named

NORM = """
    m = ReduceMean <axes = [-1]> (x)  d = Sub(x, m)  p = Pow(d, two)  v = ReduceMean <axes = [-1]> (p)
    e = Add(v, epsilon)  r = Sqrt(e)  n = Div(d, r)
"""
NORM_VALUES = "float two = {2.0}, float epsilon = {0.001}, float[4] w = {1, 2, 3, 4}, float[4] b = {4, 3, 2, 1}"
TURN = "t = Transpose <perm = [0, 1, 3, 2]> (x) "
GELU_VALUES = "float root = {1.4142135}, float one = {1.0}, float half = {0.5}"


@pytest.fixture
def after(onnx_file):
    """Factory: run one pass on a graph of x `[2, 4]`; the operators left, and how often it matched."""

    def run(name, nodes, values="", opset=17, shape="[2, 4]"):
        block = f"<{values}>" if values else ""
        foreign = read(onnx_file(f"g (float{shape} x) => (float[] y) {block} {{ {nodes} }}", opset=opset))
        needed = {"fuse": ["convert_opset", "fold_constants"], "fold": ["convert_opset"], "drop": ["convert_opset"]}
        needed = needed.get(name.partition("_")[0], [])
        for each in needed:
            named(PASSES[each])(foreign)
        count = named(PASSES[name])(foreign)
        drop_unread(foreign)
        onnx.checker.check_model(foreign.model)
        return foreign, [n.op_type for n in foreign.model.graph.node], count

    return run


def test_convert_opset_gives_one_form(after):
    foreign, _, count = after("convert_opset", "m = ReduceMean <axes = [-1]> (x) y = Sub(x, m)", opset=11)
    assert count == 1
    assert [o.version for o in foreign.model.opset_import if not o.domain] == [OPSET]
    assert len(foreign.model.graph.node[-2].input) == 2
    assert after("convert_opset", "y = Relu(x)", opset=21)[2] == 0


def test_inline_functions(onnx_file):
    path = onnx_file("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[2] x) => (float[2] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }""")
    foreign = read(path)
    assert named(PASSES["inline_functions"])(foreign) == 1
    assert [n.op_type for n in foreign.model.graph.node] == ["Add"]


def test_one_float_type(onnx_file):
    foreign = read(
        onnx_file("""g (float16[2] x) => (double[2] y) <float16[2] w = {1, 2}>
        { a = Mul(x, w) y = Cast <to = 11> (a) }""")
    )
    assert named(PASSES["one_float_type"])(foreign) >= 4
    graph = foreign.model.graph
    assert {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]} == {onnx.TensorProto.FLOAT}
    assert numpy_helper.to_array(graph.initializer[0]).dtype == np.float32
    assert graph.node[1].attribute[0].i == onnx.TensorProto.FLOAT


def test_fold_constants_computes_what_no_image_changes(after):
    foreign, ops, count = after(
        "fold_constants", "t = Transpose <perm = [1, 0]> (w) s = Add(t, t) y = MatMul(x, s)",
        "float[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}",
    )  # fmt: skip
    assert (ops, count) == (["MatMul"], 2)
    value = numpy_helper.to_array(foreign.model.graph.initializer[0])
    np.testing.assert_array_equal(value, 2 * np.arange(1, 9, dtype=np.float32).reshape(2, 4).T)


def test_fold_constants_leaves_what_would_grow(after):
    nodes = "a = ConstantOfShape(s) r = ReduceMax <keepdims = 0> (a) y = Add(x, r)"
    assert "ConstantOfShape" in after("fold_constants", nodes, "int64[1] s = {100000}")[1]


def test_drop_identities(after):
    nodes = (
        """i = Identity(x) d = Dropout(i) c = Cast <to = 1> (d) k = Concat <axis = 0> (c) m = Mul(k, one) y = Relu(m)"""
    )
    assert after("drop_identities", nodes, "float one = {1.0}")[1:] == (["Relu"], 5)


def test_drop_identities_keeps_what_changes_type_or_shape(after):
    nodes = "c = Cast <to = 7> (x) f = Cast <to = 1> (c) m = Mul(f, one) y = Relu(m)"
    assert after("drop_identities", nodes, "float[1, 1, 1] one = {1.0}")[1] == ["Cast", "Cast", "Mul", "Relu"]


@pytest.mark.parametrize("opset", [11, 17])
def test_fuse_layer_norm(after, opset):
    foreign, ops, count = after("fuse_layer_norm", NORM + "s = Mul(n, w) y = Add(s, b)", NORM_VALUES, opset)
    assert (ops, count) == (["LayerNormalization"], 1)
    assert list(foreign.model.graph.node[0].input) == ["x", "w", "b"]
    assert after("fuse_layer_norm", NORM + "y = Relu(n)", NORM_VALUES)[1] == ["LayerNormalization", "Relu"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("axes = [-1]> (x)", "axes = [0]> (x)"), ("Pow(d, two)", "Pow(d, epsilon)"), ("Sub(x, m)", "Sub(m, x)"),
     ("axes = [-1]> (p)", "axes = [-1], keepdims = 1> (d)")],
)  # fmt: skip
def test_what_is_no_layer_norm_stays(after, old, new):
    assert old in NORM
    assert "LayerNormalization" not in after("fuse_layer_norm", NORM.replace(old, new) + "y = Relu(n)", NORM_VALUES)[1]


@pytest.mark.parametrize(
    "nodes",
    [
        "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
        "d = Div(x, root) e = Erf(d) a = Add(one, e) h = Mul(x, half) y = Mul(h, a)",
        "d = Div(x, root) e = Erf(d) a = Add(e, one) h = Mul(a, half) y = Mul(h, x)",
    ],
)
def test_fuse_gelu(after, nodes):
    foreign, ops, count = after("fuse_gelu", nodes, GELU_VALUES)
    assert (ops[-1], count) == ("Gelu", 1)
    assert list(foreign.model.graph.node[-1].input) == ["x"]


def test_fuse_gelu_of_its_tanh_approximation(after):
    nodes = """c = Pow(x, three) s = Mul(c, small) i = Add(x, s) k = Mul(i, big) t = Tanh(k) a = Add(t, one)
        h = Mul(x, half) y = Mul(h, a)"""
    values = GELU_VALUES + ", float three = {3.0}, float small = {0.044715}, float big = {0.7978845}"
    foreign, ops, count = after("fuse_gelu", nodes, values)
    assert (ops[-1], count) == ("Gelu", 1)
    assert foreign.model.graph.node[-1].attribute[0].s == b"tanh"


def test_another_bell_is_no_gelu(after):
    nodes = "d = Div(x, half) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)"
    assert "Gelu" not in after("fuse_gelu", nodes, GELU_VALUES)[1]


def test_fuse_linear(after):
    values = "float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] b = {1, 2, 3}"
    foreign, ops, count = after("fuse_linear", "p = MatMul(x, w) y = Add(b, p)", values)
    assert (ops, count) == (["Linear"], 1)
    held = {t.name: numpy_helper.to_array(t) for t in foreign.model.graph.initializer}
    assert held["w_t"].shape == (3, 4)
    assert after("fuse_linear", "y = Gemm(x, w, b)", values)[1:] == (["Linear"], 1)
    assert after("fuse_linear", "y = MatMul(x, w)", values)[1:] == (["Linear"], 1)
    assert after("fuse_linear", "y = Gemm <alpha = 2.0> (x, w, b)", values)[1:] == (["Gemm"], 0)


@pytest.mark.parametrize(
    "nodes",
    [
        "l = MatMul(x, t) z = Mul(l, s) p = Softmax(z) y = MatMul(p, x)",
        "l = MatMul(x, t) z = Div(l, s) m = Add(z, l) p = Softmax(m) y = MatMul(p, x)",
        "q = Mul(x, s) k = Mul(t, s) l = MatMul(q, k) p = Softmax(l) y = MatMul(p, x)",
    ],
)
def test_fuse_attention(after, nodes):
    ops, count = after("fuse_attention", TURN + nodes, "float s = {0.5}", shape="[1, 2, 5, 4]")[1:]
    assert (ops[-1], count) == ("Attention", 1)
    assert "Softmax" not in ops


def test_softmax_over_another_axis_is_no_attention(after):
    nodes = "l = MatMul(x, t) p = Softmax <axis = 1> (l) y = MatMul(p, x)"
    assert "Softmax" in after("fuse_attention", TURN + nodes, shape="[1, 2, 5, 4]")[1]


RESHAPE = """s = Shape(x) b = Gather(s, first) l = Gather(s, last) j = Concat <axis = 0> (b, rest, l) r = Reshape(x, j)
    q = Shape(r) w = Slice(q, rest, end) f = Cast <to = 1> (w) t = Sqrt(f) y = Div(r, t)"""
RESHAPE_VALUES = "int64[1] first = {0}, int64[1] rest = {-1}, int64[1] last = {3}, int64[1] end = {9}"


@pytest.mark.parametrize(
    ("batch", "left"), [("2", ["Reshape", "Div"]), ("n", ["Shape", "Gather", "Concat", "Reshape", "Div"])]
)
def test_fix_shapes_leaves_only_what_the_batch_changes(onnx_file, batch, left):
    path = onnx_file(f"g (float[{batch}, 3, 4, 16] x) => (float[{batch}, k, 16] y) <{RESHAPE_VALUES}> {{ {RESHAPE} }}")
    foreign = fix_input(read(path), None, None)
    clean(foreign)
    assert [n.op_type for n in foreign.model.graph.node] == left
    assert foreign.shapes["r"] == (2 if batch == "2" else None, 12, 16)


def test_clean_runs_every_pass_and_says_which_matched(onnx_file):
    path = onnx_file(
        f"g (float[n, 3, 2, 4] x) => (float[n, 3, 2, 4] y) <{NORM_VALUES}> {{ {NORM} s = Mul(n, w) y = Add(s, b) }}"
    )
    foreign = fix_input(read(path), None, None)
    found = clean(foreign)
    assert {name: found[name] for name in ("convert_opset", "fuse_layer_norm")} == dict.fromkeys(
        ("convert_opset", "fuse_layer_norm"), 1
    )
    assert set(found) <= set(PASSES)
    assert [n.op_type for n in foreign.model.graph.node] == ["LayerNormalization"]


def test_unflatten_softmax(after):
    nodes = "f = Flatten <axis = 3> (x) p = Softmax <axis = -1> (f) s = Shape(x) y = Reshape(p, s)"
    assert after("unflatten_softmax", nodes, shape="[1, 2, 5, 4]")[1:] == (["Softmax"], 1)
    assert after("unflatten_softmax", nodes.replace("3", "2"), shape="[1, 2, 5, 4]")[2] == 0


# The image input


@pytest.mark.parametrize(
    ("inputs", "size", "says"),
    [
        ("float[1, 3, 8, 8] a, float[1, 4] b", None, "takes 2 inputs (a, b)"),
        ("float[1, 4] a", None, "must take images"),
        ("float[1, 4, 8, 8] a", None, "must take images"),
        ("uint8[1, 3, 8, 8] a", None, "takes images as UINT8"),
        ("float[n, 3, h, w] a", None, "pass --input-size"),
        ("float[n, 3, 8, 8] a", (16, 8), "was exported for images [8, 8]"),
    ],
)
def test_what_is_no_image_model(onnx_file, inputs, size, says):
    foreign = read(onnx_file(f"g ({inputs}) => (float[] y) {{ y = Cast <to = 1> (a) }}"))
    with pytest.raises(LoadError) as caught:
        fix_input(foreign, size, None)
    assert says in str(caught.value)


def test_the_size_becomes_constant_and_channels_may_come_last(onnx_file):
    foreign = read(onnx_file("g (float[n, 3, h, w] a) => (float[] y) { y = Relu(a) }"))
    foreign = fix_input(foreign, (16, 24), None)
    ends = foreign.ends
    assert (ends.size, ends.batch, ends.last) == ((16, 24), None, False)
    assert [d.dim_value for d in foreign.model.graph.input[0].type.tensor_type.shape.dim] == [0, 3, 16, 24]
    foreign = read(onnx_file("g (float[2, 6, 8, 3] a) => (float[] y) { y = Relu(a) }"))
    ends = fix_input(foreign, None, None).ends
    assert (ends.size, ends.batch, ends.last) == ((6, 8), 2, True)


def test_one_of_several_outputs_is_named(onnx_file):
    text = "g (float[1, 3, 8, 8] a) => (float[] scores, float[] features) { features = Relu(a) scores = Neg(a) }"
    with pytest.raises(LoadError, match=r"model.onnx#scores"):
        fix_input(read(onnx_file(text)), None, None)
    with pytest.raises(LoadError, match="did you mean features"):
        fix_input(read(onnx_file(text)), None, "feature")
    assert fix_input(read(onnx_file(text)), None, "features").ends.output == "features"


@pytest.mark.parametrize(("mask", "left"), [("{1, 1}", 1), ("{1, 0}", 0)])
def test_drop_open_masks(onnx_file, mask, left):
    path = onnx_file(f"""
        g (float[2, 2] x) => (float[2, 2] y)
        <bool[1, 2] open = {mask}, int64[2] all = {{2, 2}}, float z = {{0}}, float low = {{-1e38}}>
        {{
            e = Expand(open, all) w = Where(e, z, low) a = Add(x, w)
            s = Softmax(a) n = IsNaN(s) q = Where(n, z, s) y = Neg(q)
        }}""")
    foreign = read(path)
    assert named(PASSES["drop_open_masks"])(foreign) == 2 * left
    drop_unread(foreign)
    kept = ["Softmax", "Neg"] if left else ["Expand", "Where", "Add", "Softmax", "IsNaN", "Where", "Neg"]
    assert [n.op_type for n in foreign.model.graph.node] == kept


@pytest.mark.parametrize(("mask", "left"), [("{0, 0}", ["Softmax"]), ("{0, 1}", ["Add", "Softmax"])])
def test_drop_open_masks_that_are_constants(onnx_file, mask, left):
    path = onnx_file(f"""
        g (float[2, 2] x) => (float[2, 2] y) <float[1, 2] mask = {mask}> {{ a = Add(mask, x) y = Softmax(a) }}""")
    foreign = read(path)
    named(PASSES["drop_open_masks"])(foreign)
    drop_unread(foreign)
    assert [n.op_type for n in foreign.model.graph.node] == left


@pytest.mark.parametrize(("kind", "mask", "inputs"), [
    ("bool", "{1, 1}", 3), ("bool", "{1, 0}", 4), ("float", "{0, 0}", 3), ("float", "{0, -9}", 4),
])  # fmt: skip
def test_drop_open_masks_of_attention(onnx_file, kind, mask, inputs):
    path = onnx_file(
        f"""g (float[1, 1, 2, 4] x) => (float[1, 1, 2, 4] y)
        <{kind}[1, 2] mask = {mask}> {{ y = Attention(x, x, x, mask) }}""",
        opset=23,
    )
    foreign = read(path)
    named(PASSES["drop_open_masks"])(foreign)
    assert len(foreign.model.graph.node[0].input) == inputs

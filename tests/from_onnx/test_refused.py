"""What of a graph is not imported, or asks for too much: refused in one line, with the node and the reason."""

import pytest

from edgevit.errors import LoadError
from edgevit.load_onnx import load_onnx
from tests.from_onnx.single import graph


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ("[here] n = NonZero(images) c = Cast <to = 1> (n) y = ReduceSum(c)", "here (NonZero): its mask comes"),
        ("[here] y = Acosh(images)", "node here (Acosh): Acosh is not among"),
        ("s = Cast <to = 7> (images) z = ReduceMax <keepdims = 0> (s) [here] r = Range(z, z, z) y = Cast <to = 1> (r)",
         "node here (Range)"),
        ("s = Cast <to = 7> (images) r = ReduceMax <axes = [1, 2, 3], keepdims = 0> (s) y = Reshape(images, r)",
         "depends on the image"),
        ("[here] y = LpPool <kernel_shape = [2, 2]> (images)", "LpPool"),
        ("[here] y = com.microsoft.MultiHeadAttention <num_heads = 2> (images)", "queries, keys and values are not"),
        ("[here] y = com.microsoft.Attention <num_heads = 1, unidirectional = 1> (images, images, images)",
         "here (com.microsoft.Attention): unidirectional is not imported"),
        ("[here] y = com.microsoft.Attention <num_heads = 1> (images, images, images, images)",
         "a mask of lengths is not imported"),
        ("[here] y = com.microsoft.Inverse(images)", "here (Inverse): com.microsoft.Inverse is not among"),
    ],
)  # fmt: skip
def test_what_is_not_imported_is_refused_with_the_node_and_the_reason(onnx_file, nodes, says):
    with pytest.raises(LoadError) as caught:
        load_onnx(onnx_file(graph("", nodes, "[1, 24, 8]" if "microsoft" in nodes else "[]")), None, None)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ("antialias = 1", "a cubic coefficient of -0.75 is not imported; -0.5 and exclude_outside with antialias is"),
        ("cubic_coeff_a = -0.5", "a cubic coefficient of -0.5 is not imported; -0.75 without antialias is"),
        ("exclude_outside = 1", "exclude_outside is imported with antialias alone"),
    ],
)
def test_a_cubic_that_torch_does_not_compute(onnx_file, attributes, says):
    nodes = f's = Shape(images) [here] y = Resize <mode = "cubic", {attributes}> (images, , , s)'
    with pytest.raises(LoadError) as caught:
        load_onnx(onnx_file(graph("", nodes), opset=18), None, None)
    assert f"node here (Resize): {says}" in str(caught.value)


@pytest.mark.parametrize("nodes", ["i = Cast <to = 7> (images) y = Add(images, i)", "y = MatMul(images, pair)"])
def test_wrong_types_and_shapes(onnx_file, nodes):
    with pytest.raises(LoadError) as caught:
        load_onnx(
            onnx_file(graph("float[2, 2] pair = {1, 2, 3, 4}", nodes).replace("float[] y", "float[1, 3, 8, 8] y")),
            None,
            None,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("initializers", "nodes"),
    [
        ("int64[2] s = {1000000, 1000000}", "a = ConstantOfShape(s) r = ReduceMax(a) y = Add(images, r)"),
        ("int64[4] s = {1000, 1000, 1000, 1000}", "a = Tile(images, s) y = ReduceMax(a)"),
        ("int64 zero = {0}, int64 one = {1}, int64 many = {1000000000000}",
         "a = Range(zero, many, one) c = Cast <to = 1> (a) r = ReduceMax <keepdims = 0> (c) y = Add(images, r)"),
        ("int64[5] s = {1000000, 1, 3, 8, 8}", "a = Expand(images, s) b = Exp(a) y = ReduceMax(b)"),
        ("int64[8] p = {0, 0, 1000000, 1000000, 0, 0, 0, 0}", "y = Pad(images, p)"),
    ],
)  # fmt: skip
def test_small_files_that_ask_for_terabytes(onnx_file, initializers, nodes):
    with pytest.raises(LoadError, match="numbers"):
        load_onnx(onnx_file(graph(initializers, nodes)), None, None)

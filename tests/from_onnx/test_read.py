"""Reading an untrusted ONNX file: what is read, and that each hostile or broken file is one line of a LoadError."""

import contextlib
import os
import re

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgevit.errors import LoadError
from edgevit.from_onnx.read import read

PLAIN = """
one (float[1, 3, 4, 4] images) => (float[1, 3, 4, 4] y)
<float[1] two = {2.0}>
{
    y = Mul(images, two)
}
"""


def weighted(rows=200, columns=200):
    """images `[1, rows]` times a weight that is large enough to be lifted."""
    weight = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["images", "w"], ["y"], "product")],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), weight


def external(model, location, data=None, folder=None, **span):
    """The model with its weight in another file."""
    tensor = model.graph.initializer[0]
    if data is not None:
        (folder / location).write_bytes(data)
    del tensor.external_data[:]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **span}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


def refused(path):
    """The one line that a file is refused with."""
    with pytest.raises(LoadError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_small_tensors_stay_and_large_ones_are_lifted_as_typed_inputs(onnx_file):
    assert not read(onnx_file(PLAIN)).weights
    model, weight = weighted()
    foreign = read(onnx_file(model))
    np.testing.assert_array_equal(foreign.weights["w"], weight)
    assert [i.name for i in foreign.model.graph.input] == ["images", "w"]
    assert not foreign.model.graph.initializer


def test_external_data_beside_the_model_are_read_at_their_offset(onnx_file, tmp_path):
    model, weight = weighted()
    external(model, "weights.bin", b"ab" * 8 + weight.tobytes(), tmp_path, offset=16, length=weight.nbytes)
    np.testing.assert_array_equal(read(onnx_file(model)).weights["w"], weight)


def test_constants_become_initializers(onnx_file):
    path = onnx_file(
        "g (float[2] images) => (float[2] y) { c = Constant <value = float[1] {3.0}> () y = Add(images, c) }"
    )
    model = read(path).model
    assert [t.name for t in model.graph.initializer] == ["c"]
    assert [n.op_type for n in model.graph.node] == ["Add"]


@pytest.mark.parametrize(
    "location",
    ["/etc/hostname", "../weights.bin", "a/../../weights.bin", "..\\weights.bin", "C:\\w.bin", "", ".", "\0"],
)
def test_external_data_outside_the_folder(onnx_file, tmp_path, location):
    (tmp_path.parent / "weights.bin").write_bytes(b"\0" * 160_000)
    assert "inside the model's own folder" in refused(onnx_file(external(weighted()[0], location)))


@pytest.mark.parametrize("through", ["file", "folder"])
def test_external_data_behind_a_link_out(onnx_file, tmp_path, through):
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 160_000)
    if through == "file":
        os.symlink(tmp_path / "secret.bin", inside / "w.bin")
    else:
        os.symlink(tmp_path, inside / "up")
    model = external(weighted()[0], "w.bin" if through == "file" else "up/secret.bin")
    assert "a link out of the model's folder" in refused(onnx_file(model, "model/model.onnx"))


@pytest.mark.parametrize(
    ("span", "says"),
    [
        ({"offset": 8}, "is the file complete?"),
        ({"length": 4}, "is the file complete?"),
        ({"offset": -4}, "the file is corrupt"),
        ({"length": 10**30}, "the file is corrupt"),
    ],
)
def test_external_data_of_another_length(onnx_file, tmp_path, span, says):
    model, weight = weighted()
    assert says in refused(onnx_file(external(model, "w.bin", weight.tobytes(), tmp_path, **span)))


def test_external_data_that_are_missing_or_a_folder(onnx_file, tmp_path):
    assert "not beside the model" in refused(onnx_file(external(weighted()[0], "w.bin")))
    (tmp_path / "w.bin").mkdir()
    assert "which is no file" in refused(onnx_file(external(weighted()[0], "w.bin")))


def test_truncated_files(onnx_file, tmp_path):
    data = onnx_file(weighted()[0]).read_bytes()
    for length in (0, 1, 40, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.onnx").write_bytes(data[:length])
        assert re.search("empty|corrupt|no graph|no valid", refused(tmp_path / "cut.onnx"))


@pytest.mark.parametrize("data", [b"this is text, no model\n", b"\xff" * 200, b"\0" * 64, b"<!DOCTYPE html>"])
def test_no_onnx_file(tmp_path, data):
    (tmp_path / "model.onnx").write_bytes(data)
    assert "cop" in refused(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("a = Relu(b) b = Relu(a) y = Add(a, images)", "topologically"),
        ("y = Add(images, absent)", "absent"),
        ("y = Relu(images) y = Neg(images)", "y"),
        ("y = NoSuchOperator(images)", "NoSuchOperator"),
    ],
)
def test_graphs_that_cannot_be_computed(onnx_file, body, says):
    path = onnx_file(f"g (float[1, 3, 4, 5] images) => (float[1, 3, 4, 5] y) {{ {body} }}")
    assert says in refused(path)


def test_custom_operators_are_refused_by_name(onnx_file):
    path = onnx_file(
        '<ir_version: 8, opset_import: ["" : 17, "evil" : 1]>\n'
        "g (float[2] images) => (float[2] y) { [here] y = evil.Shell(images) }"
    )
    assert "evil.Shell (here)" in refused(path)


@pytest.mark.parametrize("opset", [6, 99])
def test_opsets_that_are_not_read(onnx_file, opset):
    path = onnx_file(PLAIN)
    model = onnx.load(path)
    model.opset_import[0].version = opset
    assert f"is of opset {opset}" in refused(onnx_file(model))


def test_tensors_of_another_length_than_their_shape(onnx_file):
    model = weighted()[0]
    model.graph.initializer[0].dims[0] = 10**12
    assert "its shape [1000000000000, 200] needs" in refused(onnx_file(model))
    model.graph.initializer[0].dims[0] = -1
    assert "has the shape (-1, 200)" in refused(onnx_file(model))


def test_types_that_are_no_numbers(onnx_file):
    model = weighted()[0]
    model.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.STRING, [1], [b"x"]))
    assert "is of type STRING" in refused(onnx_file(model))


def test_a_file_of_empty_nodes_is_refused_before_it_is_parsed(tmp_path):
    nodes = b"\x0a\x00" * 1_500_000  # each an empty NodeProto: 3 MB in the file, a hundred times that as objects
    length = len(nodes)
    varint = bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14 & 0x7F | 0x80, length >> 21])
    (tmp_path / "bomb.onnx").write_bytes(b"\x3a" + varint + nodes)
    assert "fields" in refused(tmp_path / "bomb.onnx")


def test_graphs_nested_too_deeply(tmp_path):
    inner = b""
    for _ in range(60):  # graph → node → attribute → graph
        for key in (b"\x32", b"\x2a", b"\x0a"):
            size = len(inner)
            inner = key + (bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])) + inner
    size = len(inner)
    (tmp_path / "deep.onnx").write_bytes(b"\x3a" + bytes([size & 0x7F | 0x80, size >> 7]) + inner)
    assert "too deeply" in refused(tmp_path / "deep.onnx")


def doubling(levels):
    """Functions that each call the next one twice: 2 ** levels nodes once expanded."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(levels):
        last = level == levels - 1
        call = ("Relu", "") if last else (f"f{level + 1}", "own")
        nodes = [helper.make_node(call[0], [a], [b], domain=call[1]) for a, b in (("x", "m"), ("m", "y"))]
        functions.append(helper.make_function("own", f"f{level}", ["x"], ["y"], nodes, opsets))
    graph = helper.make_graph(
        [helper.make_node("f0", ["images"], ["y"], domain="own")],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8)


def test_functions_that_expand_to_a_billion_nodes(onnx_file):
    assert "functions expanded" in refused(onnx_file(doubling(30)))


def test_functions_that_call_themselves(onnx_file):
    model = doubling(3)
    model.functions[2].node[0].op_type, model.functions[2].node[0].domain = "f0", "own"
    assert "calls itself" in refused(onnx_file(model))


def test_sparse_weights(onnx_file):
    model = weighted()[0]
    model.graph.sparse_initializer.add()
    assert "sparse" in refused(onnx_file(model))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(data=st.data())
def test_a_file_with_changed_bytes_is_read_or_refused_never_more(tmp_path, data):
    """Fuzz: flip bytes, cut and repeat pieces of a file. Anything but a LoadError fails the test."""
    original = bytearray(
        onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + PLAIN).SerializeToString()
    )
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255)), max_size=6)
    ):
        original[place] = value
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(original)), st.integers(0, len(original)))))
    changed = data.draw(st.sampled_from([original, original[:stop], original[:stop] + original[start:]]))
    path = tmp_path / "fuzzed.onnx"
    path.write_bytes(changed)
    with contextlib.suppress(LoadError):
        read(path)

"""The static gate lets no data-dependent, scattering or dynamic program through, neither traced nor written."""

import pytest
import torch
from torch import nn

from edgevit.errors import GraphError
from edgevit.export.gate import FORBIDDEN_ONNX, check_onnx, check_program
from edgevit.export.trace import export_program, trace
from edgevit.stages import InputSpec

SPEC = InputSpec(1, 4, 4)


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def refusal(function):
    with pytest.raises(GraphError) as refused:
        export_program(Calls(function), SPEC)
    return str(refused.value)


def index_of(x):
    return torch.zeros(1, 3, 4, 4, dtype=torch.int64) + (x > 0)


FORBIDDEN = {
    "nonzero": (lambda x: x.nonzero().float().sum(), "depends on the data"),
    "boolean mask": (lambda x: x[x > 0].sum(), "depends on the data|every dimension must be a constant"),
    "masked_select": (lambda x: x.masked_select(x > 0).sum(), "depends on the data"),
    "masked_scatter": (lambda x: x.masked_scatter(x > 0, x), "scatter|depends on the data"),
    "unique": (lambda x: x.unique().sum(), "depends on the data"),
    "where with one argument": (lambda x: torch.where(x > 0)[0].float().sum(), "depends on the data|constant"),
    "item": (lambda x: x * x.sum().item(), "a value leaves the graph for Python"),
    "scatter": (lambda x: torch.zeros_like(x).scatter(3, index_of(x), x), "scatter"),
    "scatter_add": (lambda x: torch.zeros_like(x).scatter_add(3, index_of(x), x), "scatter-reduce"),
    "scatter_reduce": (lambda x: x.scatter_reduce(3, index_of(x), x, "mean"), "scatter-reduce"),
    "index_add": (lambda x: x.index_add(3, torch.arange(4), x), "scatter-reduce"),
    "index_put": (lambda x: x.index_put((torch.zeros(1, dtype=torch.int64),), x), "scatter"),
    "assignment by index": (lambda x: x.clone().index_put_((index_of(x)[0, 0, 0],), x[0]), "scatter"),
    "index_copy": (lambda x: x.index_copy(3, torch.arange(4), x), "scatter"),
    "random": (lambda x: x + torch.rand(1, 3, 4, 4), "random"),
    "random like": (lambda x: x + torch.rand_like(x), "random"),
    "normal like": (lambda x: x + torch.randn_like(x), "random"),
    "random integers": (lambda x: x + torch.randint(0, 2, (4,)), "random"),
    "active dropout": (lambda x: nn.functional.dropout(x, 0.5, training=True), "random"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_forbidden_operator_is_named_with_the_reason(name):
    function, reason = FORBIDDEN[name]
    with pytest.raises(GraphError, match=reason):
        export_program(Calls(function), SPEC)


def test_the_message_names_the_module_that_holds_the_operator():
    model = nn.Sequential(nn.Identity(), Calls(lambda x: x.nonzero().float().sum()))
    with pytest.raises(GraphError, match=r"\(in model\.1\): operator aten\.nonzero\.default is not exported"):
        export_program(model, SPEC)


def test_control_flow_on_data_is_refused_before_it_is_traced():
    text = refusal(lambda x: x if x.sum() > 0 else -x)
    assert "torch.export cannot trace Calls at [1, 3, 4, 4]" in text
    assert "free of data-dependent control flow" in text


def test_a_wrong_image_size_is_refused():
    assert "take exactly this input size" in refusal(nn.Linear(5, 2))


def test_a_dynamic_batch_is_refused():
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(nn.ReLU(), (torch.zeros(2, 3, 4, 4),), dynamic_shapes=({0: batch},))
    with pytest.raises(GraphError, match="every dimension must be a constant"):
        check_program(program)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flatten(1).topk(3).values,
        lambda x: x.flatten(1).gather(1, x.flatten(1).topk(3).indices),
        lambda x: nn.functional.dropout(x, 0.5, training=False),
        lambda x: x.index_select(3, torch.tensor([2, 0])),
        lambda x: torch.where(x > 0, x, -x),
    ],
    ids=["topk", "gather", "dropout in evaluation", "index_select", "where with three arguments"],
)
def test_static_operators_pass(function):
    check_program(trace(Calls(function), SPEC).program)


def write(path, nodes, inputs=None, outputs=None):
    """A hand-made ONNX file: x `[2, 3]` float → y."""
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    x = helper.make_tensor_value_info("x", types.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", types.FLOAT, [2, 3])
    graph = helper.make_graph(nodes(onnx), "made", inputs(onnx) if inputs else [x], outputs(onnx) if outputs else [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def constant(onnx, name, values, dtype, shape):
    return onnx.helper.make_node("Constant", [], [name], value=onnx.helper.make_tensor(name, dtype, shape, values))


def body(onnx, *extra):
    """A loop body that passes its value on."""
    helper, types = onnx.helper, onnx.TensorProto
    return helper.make_graph(
        [*extra, helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["value"], ["out"])],
        "body",
        [
            helper.make_tensor_value_info("i", types.INT64, []),
            helper.make_tensor_value_info("go", types.BOOL, []),
            helper.make_tensor_value_info("value", types.FLOAT, [2, 3]),
        ],
        [
            helper.make_tensor_value_info("on", types.BOOL, []),
            helper.make_tensor_value_info("out", types.FLOAT, [2, 3]),
        ],
    )


GRAPHS = {
    "NonZero": lambda onnx: [
        onnx.helper.make_node("NonZero", ["x"], ["where"], "found"),
        onnx.helper.make_node("Identity", ["x"], ["y"]),
    ],
    "ScatterElements": lambda onnx: [
        constant(onnx, "index", [0] * 6, onnx.TensorProto.INT64, [2, 3]),
        onnx.helper.make_node("ScatterElements", ["x", "index", "x"], ["y"]),
    ],
    "Loop": lambda onnx: [
        constant(onnx, "trips", [2], onnx.TensorProto.INT64, []),
        constant(onnx, "go_in", [1], onnx.TensorProto.BOOL, []),
        onnx.helper.make_node("Loop", ["trips", "go_in", "x"], ["y"], body=body(onnx)),
    ],
    "RandomUniformLike": lambda onnx: [onnx.helper.make_node("RandomUniformLike", ["x"], ["y"])],
    "RandomNormalLike": lambda onnx: [onnx.helper.make_node("RandomNormalLike", ["x"], ["y"])],
}


@pytest.mark.parametrize("operator", GRAPHS)
def test_a_written_file_with_a_forbidden_operator_is_refused(operator, tmp_path):
    path = write(tmp_path / "bad.onnx", GRAPHS[operator])
    with pytest.raises(GraphError, match=rf"bad\.onnx holds operators that no static engine runs: {operator}\b"):
        check_onnx(path)


def test_a_forbidden_operator_inside_a_nested_graph_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("edgevit.export.gate.FORBIDDEN_ONNX", FORBIDDEN_ONNX - {"Loop"})

    def nodes(onnx):
        deep = onnx.helper.make_node("NonZero", ["value"], ["where"], "deep")
        return [
            *GRAPHS["Loop"](onnx)[:2],
            onnx.helper.make_node("Loop", ["trips", "go_in", "x"], ["y"], body=body(onnx, deep)),
        ]

    with pytest.raises(GraphError, match="NonZero deep"):
        check_onnx(write(tmp_path / "bad.onnx", nodes))


def identity(onnx):
    return [onnx.helper.make_node("Identity", ["x"], ["y"])]


@pytest.mark.parametrize("shape", [["batch", 3], [None, 3], None], ids=["named", "unknown", "no shape at all"])
@pytest.mark.parametrize("which", ["inputs", "outputs"])
def test_a_dynamic_dimension_is_refused(shape, which, tmp_path):
    def values(onnx):
        return [onnx.helper.make_tensor_value_info("x" if which == "inputs" else "y", onnx.TensorProto.FLOAT, shape)]

    def nodes(onnx):  # Expand by a computed shape: nothing can be inferred for y
        if which == "inputs":
            return identity(onnx)
        return [
            onnx.helper.make_node("Cast", ["x"], ["whole"], to=onnx.TensorProto.INT64),
            constant(onnx, "flat", [-1], onnx.TensorProto.INT64, [1]),
            onnx.helper.make_node("Reshape", ["whole", "flat"], ["shape"]),
            onnx.helper.make_node("Expand", ["x", "shape"], ["y"]),
        ]

    with pytest.raises(GraphError, match="has dynamic dimensions in"):
        check_onnx(write(tmp_path / "dynamic.onnx", nodes, **{which: values}))


def test_a_static_file_passes(tmp_path):
    check_onnx(write(tmp_path / "good.onnx", identity))

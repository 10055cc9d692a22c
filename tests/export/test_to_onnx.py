"""The written ONNX of dense, merged and pruned models: static, clean, the same numbers."""

import numpy as np
import pytest
import torch

from edgevit.export.gate import FORBIDDEN_ONNX
from edgevit.export.to_onnx import OPSET, to_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SCHEDULES = ["none", "tome:r=3", "evit:keep=0.5@1,2"]


@pytest.fixture(scope="module")
def written(traced, tmp_path_factory):
    """Factory: (graph, path, proto) of a schedule, written once."""
    folder, files = tmp_path_factory.mktemp("onnx"), {}

    def get(schedule):
        if schedule not in files:
            path = folder / f"{len(files)}.onnx"
            to_onnx(traced(schedule), path)
            files[schedule] = traced(schedule), path, onnx.load(path)
        return files[schedule]

    return get


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_operator_is_data_dependent_or_scatters(written, schedule):
    model = written(schedule)[2]
    used = {node.op_type for node in model.graph.node}
    assert not used & FORBIDDEN_ONNX
    assert not model.functions
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_dimension_is_a_positive_constant(written, schedule):
    graph = onnx.shape_inference.infer_shapes(written(schedule)[2], strict_mode=True).graph
    known = {v.name: v for v in [*graph.input, *graph.output, *graph.value_info]}
    produced = [name for node in graph.node for name in node.output if name]
    for name in [*produced, *(v.name for v in graph.input)]:
        shape = known[name].type.tensor_type
        assert shape.HasField("shape"), name
        assert all(d.HasField("dim_value") and d.dim_value > 0 for d in shape.shape.dim), name


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_names_opset_and_privacy(written, schedule):
    _, path, model = written(schedule)
    assert [v.name for v in model.graph.input] == ["images"]
    assert [v.name for v in model.graph.output] == ["logits"]
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 32, 32]
    assert [o.version for o in model.opset_import if not o.domain] == [OPSET]
    data = path.read_bytes()
    assert b"/work" not in data  # no path of the machine that wrote it
    assert b".py" not in data


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_onnxruntime_without_optimizations_gives_the_same_numbers(written, schedule):
    graph, path, _ = written(schedule)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    module = graph.program.module()
    for seed in range(4):
        images = torch.rand(graph.inputs.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        with torch.no_grad():
            want = module(images).numpy()
        got = session.run(None, {"images": images.numpy()})[0]
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()  # float32 sums in another order


def test_writing_twice_gives_the_same_bytes(traced, written, tmp_path):
    _, path, _ = written("tome:r=3")
    to_onnx(traced("tome:r=3"), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_writing_leaves_the_program_as_it_is(traced, tmp_path):
    nodes = list(traced("tome:r=3").program.graph.nodes)
    before = [dict(node.meta) for node in nodes]
    to_onnx(traced("tome:r=3"), tmp_path / "model.onnx")
    assert [set(node.meta) for node in nodes] == [set(meta) for meta in before]
    stacks = [node.meta.get("nn_module_stack") for node in nodes]  # layers are named by them
    assert stacks == [meta.get("nn_module_stack") for meta in before]

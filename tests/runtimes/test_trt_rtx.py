"""Target trt-rtx: engines built ahead of time, without a GPU; here the file they are built from is what runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgevit.errors import RuntimeRefusal
from edgevit.quant.apply import quantize
from edgevit.runtimes import runtime
from edgevit.runtimes.trt_plan import Header, check_header, read_header
from edgevit.runtimes.trt_rtx import build_engine

rtx = pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the engine itself runs")
TARGET = runtime("trt-rtx", {"compute": "SM86"})


@pytest.fixture(scope="module")
def built(graph, images, tmp_path_factory):
    """Factory: (program, target, engine) of a precision and a schedule."""
    done = {}

    def get(precision, schedule="none"):
        key = precision, schedule
        if key not in done:
            target = TARGET if precision != "fp8" else runtime("trt-rtx", {"compute": "SM89"})
            scheme, program = target.policy.quantizes(precision), graph(schedule)
            if scheme:
                scheme = replace(scheme, ranges=("minmax",), equalize=False, compensate=False, correct_bias=False)
                program = quantize(program, scheme, target.policy.rewrites, images, len(images))
            folder = tmp_path_factory.mktemp("engine")
            done[key] = program, target, target.build(program, folder, target.resolve(precision))
        return done[key]

    return get


@pytest.mark.parametrize(("precision", "schedule"), [
    ("int8", "tome:r=3@1"),
    pytest.param("fp32", "none", marks=pytest.mark.slow),
    pytest.param("fp16", "none", marks=pytest.mark.slow),
    pytest.param("fp16", "evit:keep=0.5@1", marks=pytest.mark.slow),
    pytest.param("int8+fp32", "none", marks=pytest.mark.slow),
    pytest.param("fp8", "none", marks=pytest.mark.slow),
    pytest.param("w4", "none", marks=pytest.mark.slow),
])  # fmt: skip
def test_it_builds_and_what_it_was_built_from_computes_the_program(built, images, precision, schedule):
    program, target, engine = built(precision, schedule)
    assert engine.files == ("model.engine", "model.onnx")
    assert read_header(engine.folder / engine.entry).product == "TensorRT-RTX"
    session, module = target.open(engine, threads=1), program.program.module()
    with torch.no_grad():
        want = np.concatenate([module(torch.from_numpy(i)).numpy() for i in images])
    got = np.concatenate([session.run(i) for i in images])
    assert got.dtype == np.float32
    # fp32: sums in another order. float16: 11 bits; beside integers a value may round to the next of 256, or of 8
    near = 1e-5 if precision.endswith("fp32") else 4e-3 if precision in ("fp16", "w4") else 0.1
    median = np.median(np.abs(got - want).max(axis=1)) / np.abs(want).max()
    assert median < near


def test_the_same_file_gives_the_same_engine(built):
    engine = built("int8", "tome:r=3@1")[2]
    assert build_engine(engine.folder / "model.onnx", ("SM86",)) == (engine.folder / "model.engine").read_bytes()


def test_the_header_says_who_wrote_it(built, tmp_path):
    path = built("int8", "tome:r=3@1")[2].folder / "model.engine"
    version = tuple(int(p) for p in rtx.__version__.split(".")[:3])
    assert read_header(path) == Header("TensorRT-RTX", version)
    check_header(path, "TensorRT-RTX", rtx.__version__)
    with pytest.raises(RuntimeRefusal, match=r"was built by TensorRT-RTX .*, and here is TensorRT 10\.3\.0; build it"):
        check_header(path, "TensorRT", "10.3.0")


def test_it_says_what_ran_and_what_did_not():
    assert "in ONNX Runtime" in TARGET.checked_by
    assert "that a GPU loads the engine" in TARGET.unverified
    assert "torch.cuda.is_available() is false" in TARGET.runs_here()


@pytest.mark.parametrize(("compute", "precision", "text"), [
    ("SM87", "fp16", r"compute=SM87: TensorRT-RTX builds for SM75, .*SM121, not 'SM87'"),
    ("SM86, SM89", "fp16", "not ' SM89'"),
    ("SM86,SM89,SM120", "fp8", "SM86 has no 8-bit floats; pass --option compute=SM89,SM120, or use int8"),
])  # fmt: skip
def test_wrong_capabilities_are_refused(compute, precision, text):
    with pytest.raises(RuntimeRefusal, match=text):
        runtime("trt-rtx", {"compute": compute}).resolve(precision)


def test_a_refusal_names_node_operator_and_reason(tmp_path):
    """ONNX Runtime's own quantizer writes activations in uint8."""
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    zero = helper.make_tensor("zero", TensorProto.UINT8, [], [128])
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"], name="first"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["logits"], name="second"),
    ]
    shape = [value(name, TensorProto.FLOAT, [1, 3]) for name in ("images", "logits")]
    graph = helper.make_graph(nodes, "g", shape[:1], shape[1:], [zero, scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "model.onnx")
    with pytest.raises(RuntimeRefusal, match=r"TensorRT-RTX .* refuses (De)?[Qq]uantizeLinear (first|second): .*; "):
        build_engine(tmp_path / "model.onnx", ("SM86",))


def test_a_top_k_over_the_limit_is_refused_before_it_is_built():
    from edgevit.export.trace import trace
    from edgevit.stages import InputSpec

    class Sort(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1).topk(4000).values

    (refusal,) = TARGET.refuses(trace(Sort(), InputSpec(1, 40, 40)))
    assert "k=4000 is over TensorRT's limit of 3840; keep fewer tokens" in refusal.reason

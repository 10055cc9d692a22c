"""Every target builds, opens and runs dense, merged, pruned and quantized models, and they agree with eager."""

import numpy as np
import pytest
import torch

from edgevit.errors import RuntimeRefusal
from edgevit.quant.apply import quantize
from edgevit.quant.scheme import QuantScheme
from edgevit.runtimes import runtime

SCHEDULES = ["none", "tome:r=3", "evit:keep=0.5@1,2"]
TARGETS = ["onnx", "ort", "openvino", "fake"]
QUICK = [("ort", "none"), ("ort", "tome:r=3"), ("openvino", "evit:keep=0.5@1,2"), ("fake", "none")]
QUICK_INT8 = [("ort", "tome:r=3"), ("openvino", "none"), ("fake", "none")]


def cases(schedules, quick):
    """Every target on every schedule; what is not quick is slow."""
    return [
        pytest.param(target, schedule, marks=[] if (target, schedule) in quick else pytest.mark.slow)
        for target in TARGETS
        for schedule in schedules
    ]


def outputs(engine, images):
    target, built = engine
    session = target.open(built, threads=1)
    return np.concatenate([session.run(image) for image in images])


def wanted(module, images):
    with torch.no_grad():
        return np.concatenate([module(torch.from_numpy(image)).numpy() for image in images])


def decibel(got, want):
    return 10 * np.log10(np.square(want).mean() / np.square(got - want).mean())


@pytest.mark.parametrize(("target", "schedule"), cases(SCHEDULES, QUICK))
def test_float32_engines_agree_with_eager_within_their_tolerance(engine, eager, images, target, schedule):
    built = engine(target, schedule)
    want = wanted(eager(schedule), images)
    got = outputs(built, images)
    assert got.shape == want.shape
    assert got.dtype == np.float32
    assert np.abs(got - want).max() <= built[0].policy.tolerance["fp32"] * np.abs(want).max()
    assert np.ptp(want, axis=0).max() > 0.1 * np.abs(want).max()  # outputs depend on the image


@pytest.mark.parametrize(("target", "schedule"), cases(["none", "tome:r=3"], QUICK_INT8))
def test_int8_engines_are_near_eager_but_not_equal(engine, eager, images, target, schedule):
    want = wanted(eager(schedule), images)
    got = outputs(engine(target, schedule, "int8"), images)
    assert np.isfinite(got).all()
    # 42 dB a layer on what calibration saw; eight images of noise leave unseen values to clip, and in the merged model
    # a rounded similarity may pick another, nearly equal, token
    assert decibel(got, want) > 12
    assert np.abs(got - want).max() > 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("target", TARGETS)
def test_the_engine_describes_itself(engine, target):
    found, built = engine(target)
    assert built.runtime == target
    assert built.runtime_version == found.version()
    assert built.precision == "fp32"
    assert built.entry in built.files
    assert sorted(p.name for p in built.folder.iterdir()) == sorted(built.files)
    assert built.inputs.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("target", TARGETS)
def test_a_wrong_image_size_is_an_error_not_a_result(engine, target):
    found, built = engine(target)
    session = found.open(built)
    with pytest.raises(Exception, match=r"(?i)shape|size|dimension|guard|32"):
        session.run(np.zeros((1, 3, 40, 40), np.float32))


@pytest.mark.slow
def test_one_quantized_program_means_the_same_everywhere(graph, images, tmp_path):
    """Fake quantization in torch, ONNX Runtime with optimizations off, OpenVINO in float32 around its integers."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    program = graph("none", "ort")
    results = {}
    for name, precision in [("fake", "int8"), ("onnx", "int8"), ("ort", "int8"), ("openvino", "int8+fp32")]:
        target, folder = runtime(name), tmp_path / name
        folder.mkdir()
        results[name] = outputs((target, target.build(program, folder, precision)), images)
    want = results["fake"]
    # Scales are shared and sums exact or float32, so all that can differ is a value on the edge of two integers,
    # one step in 255 of one activation. Nearly all images show far less.
    limit = {"onnx": 0.01, "ort": 0.03, "openvino": 0.03}
    for name, most in limit.items():
        off = np.abs(results[name] - want).max(axis=1) / np.abs(want).max()
        assert np.median(off) < most, name
        assert off.max() < 3 * most, name
        assert (results[name].argmax(1) == want.argmax(1)).mean() >= 7 / 8, name


def test_openvino_always_states_its_inference_precision(engine, graph, tmp_path):
    pytest.importorskip("openvino")
    target = runtime("openvino")
    capable = []
    for precision in target.policy.precisions:
        try:
            capable.append(target.resolve(precision))
        except RuntimeRefusal:
            continue
    assert {"fp32", "int8+fp32"} <= set(capable)
    hints = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8+fp32": "f32", "int8+bf16": "bf16"}
    for precision in sorted({"fp32", "bf16", "int8+fp32"} & set(capable)):
        folder = tmp_path / precision
        folder.mkdir()
        built = target.build(graph(), folder, precision)
        assert built.options["config"]["INFERENCE_PRECISION_HINT"] == hints[precision]
        assert built.precision == precision
        if precision in ("fp32", "bf16"):
            compiled = target.open(built).compiled
            assert str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string()) == hints[precision]


def test_openvino_weights_are_not_rounded_to_half_precision(engine, eager):
    pytest.importorskip("openvino")
    _, built = engine("openvino")
    parameters = sum(p.numel() for p in eager().parameters())
    assert (built.folder / "model.bin").stat().st_size > 3.5 * parameters  # equal constants are stored once


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_a_damaged_file_is_named(engine, name, tmp_path):
    from dataclasses import replace

    found, built = engine(name)
    for file in built.files:
        (tmp_path / file).write_bytes((built.folder / file).read_bytes())
    entry = tmp_path / built.entry
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    with pytest.raises(RuntimeRefusal, match=rf"cannot (load|compile) {built.entry}"):
        found.open(replace(built, folder=tmp_path))


def optimized(engine, tmp_path):
    """Operator counts of the graph that ONNX Runtime really runs."""
    import onnx
    import onnxruntime as ort

    _, built = engine
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    for key, value in built.options["session_config"].items():
        options.add_session_config_entry(key, value)
    ort.InferenceSession(str(built.folder / built.entry), options, providers=["CPUExecutionProvider"])
    used = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    return {op: used.count(op) for op in set(used)}


@pytest.mark.parametrize("schedule", ["none", "tome:r=3"])
def test_onnxruntime_runs_every_linear_in_integers(engine, schedule, tmp_path):
    counts = optimized(engine("ort", schedule, "int8"), tmp_path)
    # patch embedding, 6 a block and the head, each one integer kernel
    assert sum(counts.get(op, 0) for op in ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm")) >= 14
    assert counts.get("Gemm", 0) == 0
    assert counts.get("DequantizeLinear", 0) == 0


def test_onnxruntime_runs_float_kernels_in_the_float_engine(engine, tmp_path):
    counts = optimized(engine("ort"), tmp_path)
    assert not any("Integer" in op or "QLinear" in op for op in counts)


@pytest.mark.parametrize("schedule", ["none", pytest.param("tome:r=3", marks=pytest.mark.slow)])
def test_openvino_runs_its_linears_in_integers(engine, schedule):
    pytest.importorskip("openvino")
    found, built = engine("openvino", schedule, "int8")
    run = found.open(built).compiled.get_runtime_model()
    kinds = {}
    for op in run.get_ops():
        info = op.get_rt_info()
        if str(info["layerType"].astype(str)) in ("FullyConnected", "Convolution", "MatMul"):
            kinds[op.get_friendly_name()] = info["primitiveType"].astype(str)
    integers = [kind for kind in kinds.values() if kind.lower().endswith(("_i8", "_u8"))]
    assert len(integers) >= 14, kinds  # patch embedding, 6 a block (q, k, v apart), head


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_the_same_model_and_images_give_the_same_bytes(graph, tmp_path, target, images):
    pytest.importorskip("onnxruntime" if target == "ort" else "openvino")
    found = runtime(target)
    files = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        program = quantize(
            graph("tome:r=3"), QuantScheme(equalize=target == "ort"), found.policy.rewrites, images[:4], 4
        )
        built = found.build(program, folder, "int8" if target == "ort" else "int8+fp32")
        files.append({file: (folder / file).read_bytes() for file in built.files})
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []


@pytest.mark.parametrize(("precision", "least"), [("w8", 35), ("w8a16", 35)])
def test_the_other_schemes_are_what_their_program_computes(graph, eager, images, precision, least, tmp_path):
    """8 bits of weight give about 40 dB a layer, and these images clip nothing; the engine adds nothing of its own."""
    policy = runtime("ort").policy
    quantized = quantize(graph(), policy.quantizes(precision), policy.rewrites, images, len(images))
    session = runtime("ort").open(runtime("ort").build(quantized, tmp_path, precision))
    program, model = quantized.program.module(), eager()
    with torch.no_grad():
        want = np.concatenate([model(torch.from_numpy(i)).numpy() for i in images])
        fake = np.concatenate([program(torch.from_numpy(i)).numpy() for i in images])
    got = np.concatenate([session.run(i) for i in images])
    assert 10 * np.log10((want**2).sum() / ((got - want) ** 2).sum()) > least
    assert np.abs(got - fake).max() < 1e-3 * np.abs(fake).max()  # a 16-bit value may round the other way

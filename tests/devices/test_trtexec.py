"""trtexec: command lines, versions, logs, layer information and headers, on short text as it prints them."""

import json

import pytest

from edgevit.devices.engine_cache import engine_key
from edgevit.devices.trt_layers import fused_attention, read_layers
from edgevit.devices.trtexec import (
    PLACES,
    Version,
    build_command,
    find,
    measure_command,
    parse_version,
    version_command,
)
from edgevit.devices.trtexec_log import failure, parse_log, read_times
from edgevit.errors import MeasureError

V86, V10, V11 = Version(8, 6, 2), Version(10, 3, 0), Version(11, 4, 1)
BANNER = "&&&& {} TensorRT.trtexec [TensorRT v100300] # trtexec --loadEngine=m.plan"


@pytest.mark.parametrize(("environment", "on_path", "there", "found"), [
    ({"TRTEXEC": "/x/trtexec"}, "/usr/bin/trtexec", {"/x/trtexec"}, "/x/trtexec"),
    ({}, "/usr/bin/trtexec", set(PLACES), "/usr/bin/trtexec"),
    ({}, None, set(PLACES), "/usr/src/tensorrt/bin/trtexec"),
    ({}, None, {PLACES[2]}, PLACES[2]),
])  # fmt: skip
def test_it_is_looked_for_in_order(environment, on_path, there, found):
    assert find(environment, lambda name: on_path, there.__contains__) == found


@pytest.mark.parametrize(("environment", "text"), [
    ({"TRTEXEC": "/gone"}, "TRTEXEC=/gone does not exist; name the program"),
    ({}, "no trtexec: not on the PATH, nor /usr/src/tensorrt/bin/trtexec.*; set TRTEXEC"),
])  # fmt: skip
def test_where_it_is_not_the_places_are_named(environment, text):
    with pytest.raises(MeasureError, match=text):
        find(environment, lambda name: None, lambda place: False)


@pytest.mark.parametrize(("number", "version"), [
    ("8601", (8, 6, 1)), ("8412", (8, 4, 12)), ("100300", (10, 3, 0)), ("101601", (10, 16, 1)), ("110100", (11, 1, 0)),
    ("10.3.0.26", (10, 3, 0)),
])  # fmt: skip
def test_versions_are_read_from_the_banner(number, version):
    assert parse_version(f"noise\n&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] [b1] # trtexec") == version
    assert version_command("trtexec") == ["trtexec", "--help"]


def test_other_output_is_refused():
    with pytest.raises(MeasureError, match="it has no banner: 'bash: trtexec: command not found'"):
        parse_version("bash: trtexec: command not found\n")


def test_a_build_names_no_precision_and_is_strongly_typed():
    ten, eleven = (build_command("t", v, "m.onnx", "m.plan", "l.json", "c.bin") for v in (V10, V11))
    assert ten[:4] == ["t", "--onnx=m.onnx", "--saveEngine=m.plan", "--skipInference"]
    assert "--timingCacheFile=c.bin" in ten
    assert set(ten) - set(eleven) == {"--stronglyTyped"}
    assert not {"--fp16", "--int8", "--fp8", "--best"} & {*ten, *eleven}


def test_a_build_needs_strong_types():
    with pytest.raises(MeasureError, match=r"TensorRT 8\.6\.2 has no strongly typed networks.*JetPack 6\.1 or later"):
        build_command("t", V86, "m.onnx", "m.plan", "l.json")


def test_a_measurement_means_the_same_on_every_version():
    lines = [measure_command("t", v, "m.plan", "t.json") for v in (V86, V10, V11)]
    assert lines[0] == lines[1] == lines[2]
    assert {"--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--infStreams=1"} <= set(lines[0])


def test_with_copies_it_is_a_flag_less_or_one_more():
    assert set(measure_command("t", V10, "p", "t")) - set(measure_command("t", V10, "p", "t", transfers=True)) == {
        "--noDataTransfers"
    }
    assert "--includeDataTransfers" in measure_command("t", V11, "p", "t", transfers=True)


def test_a_run_so_long_that_the_clock_coarsens_is_refused():
    with pytest.raises(MeasureError, match="seconds=180 must be above 0 and at most 10"):
        measure_command("t", V10, "p", "t", seconds=180)


def logged(*lines, end="PASSED"):
    stamped = [f"[05/13/2025-10:36:46] {line}" for line in lines]
    return "\n".join([BANNER.format("RUNNING"), *stamped, BANNER.format(end), "freed a plugin"])


def test_a_log_is_read():
    log = parse_log(logged(
        "[I] Engine built in 9.5 sec.",
        "[I] Created engine with size: 44.1 MiB",
        "[I] [TRT] [MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 3 MiB, GPU 64 MiB",
        "[I] Successfully captured CUDA graph for the current execution context",
        "[I] Throughput: 318.007 qps",
        "[I] GPU Compute Time: min = 3.12 ms, max = 3.15 ms, mean = 3.14 ms, median = 3.13 ms, "
        "percentile(90%) = 3.145 ms, percentile(99.9%) = 3.1499 ms",
        "[W] * GPU compute time is unstable, with coefficient of variance = 6.6%.",
        "[W]   Lock the clocks.",
    ))  # fmt: skip
    assert log.version == (10, 3, 0)
    assert log.passed
    assert log.cuda_graph
    assert log.metrics_ms["GPU Compute Time"] == {
        "min": 3.12, "max": 3.15, "mean": 3.14, "median": 3.13, "p90": 3.145, "p99.9": 3.1499,
    }  # fmt: skip
    assert log.numbers == {"build_s": 9.5, "engine_mib": 44.1, "gpu_build_mib": 64.0, "throughput_qps": 318.007}
    assert log.warnings == ("GPU compute time is unstable, with coefficient of variance = 6.6%.",)


@pytest.mark.parametrize(("lines", "end", "text"), [
    (["[E] Unknown option: --fp16 "], "FAILED", "failed: Unknown option: --fp16 ; this version has no such flag"),
    (["[E] [TRT] While parsing node number 3:", "[E] [TRT] (/Sub: SUB must have same input types. But they are of "
      "types Half and Float.)"], "FAILED", "failed: .*Half and Float.*; two types meet in the ONNX file"),
    (["[E] Engine set up failed"], "FAILED", "trtexec 10.3.0 failed: Engine set up failed; its log says more"),
    ([], "FAILED", "failed: it gives no reason"),
    (["[I] Starting inference"], "RUNNING", r"trtexec 10\.3\.0 did not finish: the log ends early"),
])  # fmt: skip
def test_a_failure_becomes_one_line(lines, end, text):
    log = parse_log(logged(*lines, end=end))
    assert not log.passed
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(failure(log))


def test_times_are_those_of_the_gpu():
    rows = [{"startComputeMs": 1.0, "endComputeMs": 2.25, "computeMs": 1.25, "latencyMs": 1.3}] * 2
    assert read_times(json.dumps(rows)) == [1.25, 1.25]
    with pytest.raises(MeasureError, match="no row has computeMs"):
        read_times("[]")


def layer(name, kind="kgen", tactic="", origin=()):
    sources = "\x1e".join(f"[ONNX Layer: {o}]" for o in origin)
    return {"Name": name, "LayerType": kind, "TacticName": tactic, "Metadata": sources}


FUSED = [
    layer("node_linear_myl0_1", "gemm", origin=["node_linear"]),
    layer("_gemm_mha_v2_myl0_2", "kgen_mha", origin=["node_MatMul", "node_Softmax", "node_MatMul_1"]),
]
PIECES = [layer("__myl_AddMaxrSubExpSum_myl4_2", origin=["node_Softmax"]), layer("node_matmul_myl4_3", "gemm")]
TEN = {"Bindings": ["images", "logits"]}
ELEVEN = {"I/O Tensors": [{"Name": "images", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3, 32, 32]}]}


@pytest.mark.parametrize("around", [TEN, ELEVEN])
def test_fused_attention_is_seen(around):
    layers = read_layers(json.dumps({"Layers": FUSED, **around}))
    assert layers.fused == ("_gemm_mha_v2_myl0_2",)
    assert layers.sources["_gemm_mha_v2_myl0_2"] == ("node_MatMul", "node_Softmax", "node_MatMul_1")
    assert fused_attention(layers, 1) is None


def test_attention_in_pieces_is_named():
    layers = read_layers(json.dumps({"Layers": FUSED + PIECES, **TEN}))
    want = "1 of 2 attentions are fused; 1 softmax kernels, first __myl_AddMaxrSubExpSum_myl4_2"
    assert fused_attention(layers, 2) == want


@pytest.mark.parametrize(("content", "text"), [
    ({"Layers": ["Conv-1 + ReLU-2"], **TEN}, "keeps layer names alone; build it with --profilingVerbosity=detailed"),
    ({"layers": []}, "no layer information of TensorRT"),
])  # fmt: skip
def test_information_that_does_not_tell_is_refused(content, text):
    with pytest.raises(MeasureError, match=text):
        read_layers(json.dumps(content))


def test_a_cached_engine_is_of_one_file_device_and_version(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"a")
    (tmp_path / "b.onnx").write_bytes(b"b")
    names = {
        engine_key(tmp_path / file, device, version)
        for file in ("a.onnx", "b.onnx") for device in ("Orin", "Thor") for version in ("10.3.0", "10.16.2")
    }  # fmt: skip
    assert len(names) == 8
    assert engine_key(tmp_path / "a.onnx", "Orin", "10.3.0") in names

"""The real runners on a tiny model: what they record, not how fast it was."""

import json
import subprocess
import sys

import pytest

from edgevit.devices.plan import RUNNERS

FAST = {"seed": 0, "warmup_s": 0.05, "min_samples": 20, "min_seconds": 0.05, "max_seconds": 5}


def run(name, tmp_path, **job):
    out = tmp_path / "record.json"
    todo = tmp_path / "job.json"
    todo.write_text(json.dumps({**FAST, "input": {"name": "images", "shape": [1, 3, 8, 8]}, "out": str(out), **job}))
    done = subprocess.run(
        [sys.executable, "-I", str(RUNNERS[name]), str(todo)], capture_output=True, text=True, check=False
    )
    return done, json.loads(out.read_text()) if out.exists() else None


def onnx_model(path):
    """Images times two, summed to a logit each."""
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["images", "two"], ["twice"]),
            helper.make_node("ReduceMean", ["twice"], ["logits"], axes=[2, 3], keepdims=0),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", floats, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", floats, [1, 3])],
        [helper.make_tensor("two", floats, [], [2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    return str(onnx_model(tmp_path_factory.mktemp("model") / "tiny.onnx"))


def check(record, runtime):
    assert record["fake"] is False
    assert record["runtime"] == runtime
    assert record["runtime_version"][0].isdigit()
    assert len(record["samples_ms"]) >= 20
    assert all(value > 0 for value in record["samples_ms"])
    assert record["load_ms"] > 0
    assert record["first_ms"] > 0
    assert record["threads"] == 1
    assert record["peak_memory_bytes"] >= record["baseline_memory_bytes"] > 1 << 20
    assert record["warmup"]["seconds"] >= 0.05
    assert record["warmup"]["samples"] >= 10
    assert record["job"]["seed"] == 0


def test_ort(tmp_path, onnx_file, monkeypatch):
    pytest.importorskip("onnxruntime")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    config = {"session.intra_op.allow_spinning": "0"}
    done, record = run("ort", tmp_path, engine=onnx_file, options={"threads": 1, "session_config": config})
    assert done.returncode == 0, done.stderr
    check(record, "onnxruntime")
    assert record["applied"] == {"session_config": config, "providers": ["CPUExecutionProvider"]}
    assert not list(scratch.iterdir())  # its telemetry, switched off, would leave a session file


def test_openvino(tmp_path):
    pytest.importorskip("openvino")
    # Built in a process of its own: this one may hold another runtime.
    build = (
        "import openvino as ov, openvino.opset13 as ops, numpy as np\n"
        "x = ops.parameter([1, 3, 8, 8], np.float32, name='images'); x.output(0).set_names({'images'})\n"
        "y = ops.reduce_mean(ops.multiply(x, np.float32(2)), np.array([2, 3]))\n"
        f"ov.save_model(ov.Model([y], [x], 'tiny'), {str(tmp_path / 'tiny.xml')!r}, compress_to_fp16=False)\n"
    )
    subprocess.run([sys.executable, "-c", build], check=True, capture_output=True)
    options = {"threads": 1, "config": {"INFERENCE_PRECISION_HINT": "f32"}}
    done, record = run("openvino", tmp_path, engine=str(tmp_path / "tiny.xml"), options=options)
    assert done.returncode == 0, done.stderr
    check(record, "openvino")
    assert record["applied"]["reported"]["NUM_STREAMS"] == "1"
    assert "float" in record["applied"]["reported"]["INFERENCE_PRECISION_HINT"]


def test_openvino_times_no_precision_that_the_cpu_lacks(tmp_path):
    openvino = pytest.importorskip("openvino")
    capable = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    lacking = [hint for hint, name in (("f16", "FP16"), ("bf16", "BF16")) if name not in capable]
    if not lacking:
        pytest.skip("this CPU has both")
    (tmp_path / "any.xml").touch()
    options = {"threads": 1, "config": {"INFERENCE_PRECISION_HINT": lacking[0]}}
    done, record = run("openvino", tmp_path, engine=str(tmp_path / "any.xml"), options=options)
    assert (done.returncode, record) == (1, None)
    assert done.stderr.count("\n") == 1
    assert "the engine computes in" in done.stderr


@pytest.fixture(scope="module")
def pte_file(tmp_path_factory):
    """Images times two, summed to a logit each. Built in a process of its own."""
    pytest.importorskip("executorch")
    path = tmp_path_factory.mktemp("model") / "tiny.pte"
    build = (
        "import torch\n"
        "from executorch.exir import to_edge\n"
        "class Twice(torch.nn.Module):\n"
        "    def forward(self, images): return (images * 2).mean((2, 3))\n"
        "program = torch.export.export(Twice(), (torch.zeros(1, 3, 8, 8),))\n"
        f"open({str(path)!r}, 'wb').write(to_edge(program).to_executorch().buffer)\n"
    )
    subprocess.run([sys.executable, "-c", build], check=True, capture_output=True)
    return str(path)


@pytest.mark.slow
def test_executorch(tmp_path, pte_file):
    done, record = run("executorch", tmp_path, engine=pte_file, options={"threads": 1, "partition": {}})
    assert done.returncode == 0, done.stderr
    check(record, "executorch")
    assert "XnnpackBackend" in record["applied"]["backends"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"engine": "/nowhere/model.pte"}, "does not exist"),
        ({"input": {"name": "images", "shape": [1, 3, 9, 9]}}, "inputs are [[1, 3, 8, 8]], the job gives [1, 3, 9, 9]"),
        ({"options": {"streams": 2}}, "unknown options"),
    ],
)
def test_executorch_errors_end_in_one_line(tmp_path, pte_file, change, says):
    done, record = run("executorch", tmp_path, **{"engine": pte_file, "options": {"threads": 1}, **change})
    assert done.returncode == 1
    assert record is None
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("runner_executorch: ")
    assert says in last


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"engine": "/nowhere/model.onnx"}, "does not exist"),
        ({"input": {"name": "pixels", "shape": [1, 3, 8, 8]}}, "'images'"),
        ({"input": {"name": "images", "shape": [1, 3, 9, 9]}}, "9"),
        ({"options": {"streams": 2}}, "unknown options"),
        ({"options": {"session_config": {"": "x"}}}, ""),
    ],
)
def test_ort_errors_are_one_line(tmp_path, onnx_file, change, says):
    pytest.importorskip("onnxruntime")
    done, record = run("ort", tmp_path, **{"engine": onnx_file, "options": {"threads": 1}, **change})
    assert done.returncode == 1
    assert record is None
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("runner_ort: ")
    assert says in done.stderr


def test_a_job_without_a_key(tmp_path):
    (tmp_path / "job.json").write_text("{}")
    for name, path in RUNNERS.items():
        done = subprocess.run(
            [sys.executable, str(path), str(tmp_path / "job.json")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (1, f"runner_{name}: the job has no 'engine'\n")


def test_the_real_runners_share_their_loop():
    """They are single files by design; this keeps their common half from drifting apart."""
    files = [RUNNERS[name] for name in ("ort", "openvino", "executorch")]
    halves = {path.read_text("utf-8").partition("# From here to the end,")[2] for path in files}
    assert len(halves) == 1
    assert halves != {""}

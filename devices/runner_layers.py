"""Time the single layers of one engine, inference after inference: `python runner_layers.py job.json`.

Python 3.9 or later; the standard library, numpy and the runtime. The job is that of `runner_ort.py`, with `times`: how
"ort" or "openvino" times. Its `min_samples` is 0: timing every layer slows a runtime, so what is written, the median of
each layer in milliseconds under `layers`, is good for shares and no latency.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

INFERENCES, WARM_UP = 40, 10

Layer = list[Any]
"""name, operator, milliseconds; in the order they ran."""


def time_ort(job: dict[str, Any], array: Any, folder: str) -> tuple[str, list[Layer]]:
    """By the runtime's profiler, which writes one event a layer and inference."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = int(job["options"].get("threads", 0))
    settings.log_severity_level = 3
    for key, value in job["options"].get("session_config", {}).items():
        settings.add_session_config_entry(str(key), str(value))
    settings.enable_profiling = True
    settings.profile_file_prefix = str(Path(folder) / "profile")
    session = ort.InferenceSession(str(job["engine"]), settings, providers=["CPUExecutionProvider"])
    for _ in range(WARM_UP + INFERENCES):
        session.run(None, {job["input"]["name"]: array})
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return ort.__version__, read_events(events)


def read_events(events: list[dict[str, Any]]) -> list[Layer]:
    """The profiler's events → layers, the warm-up left out."""
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            name = name[: -len("_kernel_time")]
            times.setdefault(name, []).append(event["dur"] / 1e3)
            kinds[name] = event.get("args", {}).get("op_name", "")
    return [[name, kinds[name], statistics.median(found[WARM_UP:] or found)] for name, found in times.items()]


def time_openvino(job: dict[str, Any], array: Any, folder: str) -> tuple[str, list[Layer]]:
    """By the request's own counters, read after each inference."""
    import openvino as ov

    config = dict(job["options"].get("config", {}))
    if job["options"].get("threads"):
        config["INFERENCE_NUM_THREADS"] = str(job["options"]["threads"])
    compiled = ov.Core().compile_model(str(job["engine"]), "CPU", {**config, "PERF_COUNT": "YES"})
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(array, shared_memory=True))
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for number in range(WARM_UP + INFERENCES):
        request.infer()
        if number < WARM_UP:
            continue
        for layer in request.get_profiling_info():
            if layer.status == ov.ProfilingInfo.Status.EXECUTED:
                times.setdefault(layer.node_name, []).append(layer.real_time.total_seconds() * 1e3)
                kinds[layer.node_name] = layer.node_type
    return ov.__version__, [[name, kinds[name], statistics.median(found)] for name, found in times.items()]


TIMERS = {"ort": ("onnxruntime", time_ort), "openvino": ("openvino", time_openvino)}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up, time."""
    import numpy as np

    if not Path(job["engine"]).is_file():
        raise RuntimeError(f"engine file {job['engine']} does not exist")
    array = np.random.default_rng(job["seed"]).standard_normal(tuple(job["input"]["shape"]), dtype=np.float32)
    runtime, timer = TIMERS[job["times"]]
    with tempfile.TemporaryDirectory() as folder:
        version, layers = timer(job, array, folder)
    if not layers:
        raise RuntimeError(f"{runtime} {version} timed no layer")
    return {
        "schema": 1,
        "runner": "layers",
        "fake": False,
        "runtime": runtime,
        "runtime_version": version,
        "samples_ms": [],
        "layers": layers,
        "job": job,
    }


def main(argv: list[str]) -> int:
    """Read the job, write the record beside its place and rename it there: whole or absent."""
    try:
        if len(argv) != 2:
            raise RuntimeError(f"usage: python {Path(argv[0]).name} job.json")
        job = json.loads(Path(argv[1]).read_text("utf-8"))
        text = json.dumps(measure(job), allow_nan=False)
        out = Path(job["out"])
        part = out.with_name(out.name + ".part")
        part.write_text(text, "utf-8")
        os.replace(part, out)
    except KeyError as error:
        print(f"runner_layers: the job has no {error}", file=sys.stderr)
        return 1
    except Exception as error:  # the process ends here: whatever the runtime raised becomes the one line
        print(f"runner_layers: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

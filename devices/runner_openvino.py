"""Measure one OpenVINO engine in this process: `python runner_openvino.py job.json`.

Python 3.9 or later, any CPU. Needs the standard library, numpy and openvino. The job is one JSON object:

    {"engine": "model.xml", "input": {"name": "images", "shape": [1, 3, 224, 224]}, "seed": 0,
     "options": {"threads": 2, "config": {"INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": "1"}},
     "warmup_s": 0.5, "min_samples": 64, "min_seconds": 1.5, "max_seconds": 20, "out": "record.json"}

It writes one JSON record with the raw samples to `out`; with `"layers": true` instead the median of each layer in
milliseconds. On an error: one line on stderr, exit status 1, no record.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

RUNNER = "openvino"
DEFAULTS = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}  # one inference at a time, as an app runs it
REPORTED = (
    *("INFERENCE_NUM_THREADS", "NUM_STREAMS", "INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT"),
    "EXECUTION_DEVICES",
)
CAPABILITY = {"bf16": "BF16", "f16": "FP16"}  # a hint that the CPU lacks would be computed in float32, silently


def runtime() -> Any:
    """The module."""
    try:
        import openvino
    except ImportError as error:
        raise RuntimeError(f"cannot import openvino ({error}): pip install openvino") from error
    return openvino


def read_config(job: dict[str, Any]) -> dict[str, str]:
    """What the engine is compiled with."""
    options = dict(job["options"])
    threads = int(options.pop("threads", 0))  # 0: the runtime chooses
    config = {**DEFAULTS, **options.pop("config", {})}
    if options:
        raise RuntimeError(f"unknown options {sorted(options)}; known: threads, config")
    if threads:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    wanted = CAPABILITY.get(config.get("INFERENCE_PRECISION_HINT", ""))
    capable = runtime().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") if wanted else ()
    if wanted and wanted not in capable:
        raise RuntimeError(f"the engine computes in {wanted}, this CPU in {', '.join(capable)}; export it in fp32")
    return config


def open_engine(job: dict[str, Any], array: Any) -> tuple[Callable[[], object], dict[str, Any]]:
    """Read and compile the engine; return one inference as a function, and the facts for the record.

    The input tensor is set once and shares the array's memory; outputs stay where the runtime wrote them.
    """
    ov, config = runtime(), read_config(job)
    core = ov.Core()
    baseline = memory_bytes("VmRSS")
    start = time.perf_counter_ns()
    compiled = core.compile_model(core.read_model(str(job["engine"])), "CPU", config)
    load_ms = (time.perf_counter_ns() - start) / 1e6

    name = job["input"]["name"]
    names = [sorted(port.get_names()) for port in compiled.inputs]
    # A port without any name is the model's only input or nothing to guess about.
    if len(names) != 1 or (names[0] and name not in names[0]):
        raise RuntimeError(f"the engine's inputs are {names}, the job feeds {name!r} alone")
    shape = compiled.inputs[0].get_partial_shape()
    if not shape.compatible(ov.PartialShape(list(array.shape))):
        raise RuntimeError(f"input {name!r} has shape {shape}, the job gives {list(array.shape)}")
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(array, shared_memory=True))
    facts = {
        "runtime": "openvino",
        "runtime_version": ov.__version__,
        "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
        "load_ms": load_ms,
        "baseline_memory_bytes": baseline,
        "applied": {"config": config, "reported": {key: str(compiled.get_property(key)) for key in REPORTED}},
    }
    return lambda: request.infer(share_outputs=True), facts


def time_layers(job: dict[str, Any], array: Any) -> dict[str, Any]:
    """Single layers by the request's own counters, read after each inference."""
    ov = runtime()
    compiled = ov.Core().compile_model(str(job["engine"]), "CPU", {**read_config(job), "PERF_COUNT": "YES"})
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(array, shared_memory=True))
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for number in range(LAYER_WARM_UP + LAYER_INFERENCES):
        request.infer()
        if number < LAYER_WARM_UP:
            continue
        for layer in request.get_profiling_info():
            if layer.status == ov.ProfilingInfo.Status.EXECUTED:
                times.setdefault(layer.node_name, []).append(layer.real_time.total_seconds() * 1e3)
                kinds[layer.node_name] = layer.node_type
    # Counters are whole microseconds, and a layer that took less is not among the executed ones.
    rounds = {name: found + [0.0] * (LAYER_INFERENCES - len(found)) for name, found in times.items()}
    layers = [[name, kinds[name], statistics.median(found)] for name, found in rounds.items()]
    return {"runtime": "openvino", "runtime_version": ov.__version__, "layers": layers}


# From here to the end, the runners of real engines hold the same text (a test compares them): each must be one
# self-contained file, so that it can be copied to a device and run there.

LAYER_WARM_UP, LAYER_INFERENCES = 10, 40
"""Of `time_layers`."""


def pseudo_random(shape: list[int], seed: int) -> Any:
    """A fixed float32 array: the same values in every round, on every machine."""
    import numpy as np

    return np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)


def memory_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process.

    The kernel's own lines come first: ru_maxrss survives exec, so a child of a large parent would report its
    parent.
    """
    try:
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def once_ns(run: Callable[[], object]) -> int:
    """Nanoseconds of one inference."""
    start = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - start


def warm_up(run: Callable[[], object], least_s: float, most_s: float) -> dict[str, Any]:
    """Run until `least_s` have passed and two successive window medians agree within 2 %, at most `most_s`.

    A window is a quarter of `least_s`, and five inferences at least. `least_s` = 0 means no warm-up at all.
    """
    start = time.perf_counter()
    count, stable = 0, False
    medians: list[float] = []
    while least_s > 0 and not stable and time.perf_counter() - start < most_s:
        window: list[int] = []
        began = time.perf_counter()
        while len(window) < 5 or time.perf_counter() - began < least_s / 4:
            window.append(once_ns(run))
            if time.perf_counter() - start >= most_s:
                break
        count += len(window)
        medians.append(statistics.median(window))
        settled = len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) <= 0.02
        stable = settled and time.perf_counter() - start >= least_s
    return {"seconds": round(time.perf_counter() - start, 3), "samples": count, "stable": stable}


def sample(run: Callable[[], object], job: dict[str, Any]) -> list[float]:
    """Raw milliseconds, one inference each."""
    gc.collect()
    gc.disable()  # a collection in the loop would be Python's time, not the engine's
    samples = in_turns(run, job["turn"]) if job.get("turn") else alone(run, job)
    gc.enable()
    return [value / 1e6 for value in samples]


def alone(run: Callable[[], object], job: dict[str, Any]) -> list[int]:
    """Until samples and seconds suffice or the time is up."""
    samples: list[int] = []
    start = time.perf_counter()
    spent_s = 0.0
    while not samples or spent_s < job["max_seconds"]:
        samples.append(once_ns(run))
        spent_s = time.perf_counter() - start
        if len(samples) >= job["min_samples"] and spent_s >= job["min_seconds"]:
            break
    return samples


def in_turns(run: Callable[[], object], count: int) -> list[int]:
    """So many inferences a turn, for as long as turns are given; meanwhile another process waits for its own."""
    samples: list[int] = []
    while True:
        print("edgevit: turn", flush=True)
        answer = sys.stdin.readline().strip()
        if answer == "end":
            return samples
        if answer != "go":
            raise RuntimeError("whoever gives the turns is gone")
        samples += [once_ns(run) for _ in range(count)]


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The whole round: load, first inference, warm-up, samples; or, where the job says `layers`, single layers."""
    if not Path(job["engine"]).is_file():
        raise RuntimeError(f"engine file {job['engine']} does not exist")
    array = pseudo_random(job["input"]["shape"], job["seed"])
    if job.get("layers"):  # timing every layer slows a runtime: good for shares, no latency
        found = time_layers(job, array)
        if not found["layers"]:
            raise RuntimeError(f"{found['runtime']} {found['runtime_version']} timed no layer")
        return {"schema": 1, "runner": RUNNER, "fake": False, **found, "samples_ms": [], "job": job}
    run, facts = open_engine(job, array)
    facts["load_memory_bytes"] = memory_bytes("VmHWM")
    first_ms = once_ns(run) / 1e6
    warm = warm_up(run, job["warmup_s"], job["max_seconds"])
    began = time.monotonic()
    samples_ms = sample(run, job)
    window_s = [began, time.monotonic()]
    return {
        "schema": 1,
        "runner": RUNNER,
        "fake": False,
        **facts,
        "first_ms": first_ms,
        "warmup": warm,
        "samples_ms": samples_ms,
        "window_s": window_s,  # the machine's monotonic clock, for what ran beside it
        "peak_memory_bytes": memory_bytes("VmHWM"),
        "python": platform.python_version(),
        "machine": platform.machine(),
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
        print(f"runner_{RUNNER}: the job has no {error}", file=sys.stderr)
        return 1
    except Exception as error:  # the process ends here: whatever the runtime raised becomes the one line
        print(f"runner_{RUNNER}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

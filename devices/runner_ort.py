"""Measure one ONNX Runtime engine in this process: `python runner_ort.py job.json`.

Python 3.9 or later, any CPU. Needs the standard library, numpy and onnxruntime. The job is one JSON object:

    {"engine": "model.onnx", "input": {"name": "images", "shape": [1, 3, 224, 224]}, "seed": 0,
     "options": {"threads": 2, "session_config": {"session.intra_op.allow_spinning": "0"}},
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
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

RUNNER = "ort"


def runtime() -> Any:
    """The module."""
    # From 1.29 on the runtime uploads usage data from a thread of its own, which would land in the samples.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(f"cannot import onnxruntime ({error}): pip install onnxruntime") from error
    return onnxruntime


def read_options(job: dict[str, Any]) -> tuple[int, dict[str, Any], Any]:
    """Threads (0: the runtime chooses), session config, and both as the session's options."""
    ort, options = runtime(), dict(job["options"])
    threads = int(options.pop("threads", 0))
    config = dict(options.pop("session_config", {}))
    if options:
        raise RuntimeError(f"unknown options {sorted(options)}; known: threads, session_config")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 3
    for key, value in config.items():
        settings.add_session_config_entry(str(key), str(value))
    return threads, config, settings


def open_engine(job: dict[str, Any], array: Any) -> tuple[Callable[[], object], dict[str, Any]]:
    """Load the engine; return one inference as a function, and the facts for the record.

    Input and outputs are bound once to preallocated buffers: a run allocates and copies nothing.
    """
    ort = runtime()
    threads, config, settings = read_options(job)
    baseline = memory_bytes("VmRSS")
    start = time.perf_counter_ns()
    session = ort.InferenceSession(str(job["engine"]), settings, providers=["CPUExecutionProvider"])
    load_ms = (time.perf_counter_ns() - start) / 1e6

    names = [entry.name for entry in session.get_inputs()]
    if names != [job["input"]["name"]]:
        raise RuntimeError(f"the engine's inputs are {names}, the job feeds {job['input']['name']!r} alone")
    binding = session.io_binding()
    binding.bind_ortvalue_input(names[0], ort.OrtValue.ortvalue_from_numpy(array))
    for entry in session.get_outputs():
        fixed = entry.type == "tensor(float)" and all(isinstance(size, int) for size in entry.shape)
        if fixed:
            buffer = ort.OrtValue.ortvalue_from_shape_and_type(entry.shape, array.dtype, "cpu")
            binding.bind_ortvalue_output(entry.name, buffer)
        else:  # a shape that is known only after the run: the runtime allocates
            binding.bind_output(entry.name, "cpu")
    facts = {
        "runtime": "onnxruntime",
        "runtime_version": ort.__version__,
        "threads": threads,
        "load_ms": load_ms,
        "baseline_memory_bytes": baseline,
        "applied": {"session_config": config, "providers": session.get_providers()},
    }
    return lambda: session.run_with_iobinding(binding), facts


def time_layers(job: dict[str, Any], array: Any) -> dict[str, Any]:
    """Single layers by the runtime's profiler, which writes one event a layer and inference."""
    ort = runtime()
    _, _, settings = read_options(job)
    settings.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(job["engine"]), settings, providers=["CPUExecutionProvider"])
        for _ in range(LAYER_WARM_UP + LAYER_INFERENCES):
            session.run(None, {job["input"]["name"]: array})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return {"runtime": "onnxruntime", "runtime_version": ort.__version__, "layers": read_events(events)}


def read_events(events: list[dict[str, Any]]) -> list[list[Any]]:
    """The profiler's events → name, operator, milliseconds of each layer; the warm-up left out."""
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            name = name[: -len("_kernel_time")]
            times.setdefault(name, []).append(event["dur"] / 1e3)
            kinds[name] = event.get("args", {}).get("op_name", "")
    return [[name, kinds[name], statistics.median(found[LAYER_WARM_UP:] or found)] for name, found in times.items()]


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

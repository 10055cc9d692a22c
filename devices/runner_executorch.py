"""Measure one ExecuTorch program in this process: `python runner_executorch.py job.json`.

Python 3.10 or later, a CPU that the executorch package has wheels for. Needs the standard library, numpy, torch (for
the tensors) and executorch. The job is one JSON object:

    {"engine": "model.pte", "input": {"name": "images", "shape": [1, 3, 224, 224]}, "seed": 0,
     "options": {"threads": 2}, "warmup_s": 0.5, "min_samples": 64, "min_seconds": 1.5, "max_seconds": 20,
     "out": "record.json"}

It writes one JSON record with the raw samples to `out`. On an error: a last line on stderr, exit status 1, no record.
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

RUNNER = "executorch"


def open_engine(job: dict[str, Any], array: Any) -> tuple[Callable[[], object], dict[str, Any]]:
    """Load the program; return one inference as a function, and the facts for the record.

    The input shares the array's memory and outputs are not copied. A program knows its inputs by place, not by name.
    """
    try:
        import torch  # first: the extension needs its libraries loaded
        from executorch.extension.pybindings import _C as runtime  # the module around it imports the whole compiler
        from executorch.version import __version__
    except ImportError as error:
        raise RuntimeError(f"cannot import executorch ({error}): pip install executorch") from error

    options = dict(job["options"])
    threads = int(options.pop("threads", 0))  # 0: the runtime chooses
    options.pop("partition", None)  # what the delegate took, known when it was built
    if options:
        raise RuntimeError(f"unknown options {sorted(options)}; known: threads, partition")
    if threads:
        runtime._unsafe_reset_threadpool(threads)
    baseline = memory_bytes("VmRSS")
    start = time.perf_counter_ns()
    program = runtime._load_program(str(job["engine"]))
    method = program.load_method("forward")
    load_ms = (time.perf_counter_ns() - start) / 1e6

    meta = method.method_meta()
    shapes = [list(meta.input_tensor_meta(place).sizes()) for place in range(meta.num_inputs())]
    if shapes != [list(array.shape)]:
        raise RuntimeError(f"the program's inputs are {shapes}, the job gives {list(array.shape)}")
    images = (torch.from_numpy(array),)
    facts = {
        "runtime": "executorch",
        "runtime_version": __version__,
        "threads": runtime._threadpool_get_thread_count(),
        "load_ms": load_ms,
        "baseline_memory_bytes": baseline,
        "applied": {"backends": list(runtime._get_registered_backend_names())},
    }
    return lambda: method.call(images, clone_outputs=False), facts


def time_layers(job: dict[str, Any], array: Any) -> dict[str, Any]:
    """Raise: this runtime's package times none."""
    raise RuntimeError("executorch times no single layers")


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

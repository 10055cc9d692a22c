"""Measure one TensorRT engine by trtexec: `python runner_trtexec.py job.json`.

Python 3.9 or later, standard library; files of edgevit/devices lie beside it. The job's engine is an ONNX file; the
engine is built once on the device and kept in the job's `cache`, by content, device and version. A job with
`"min_samples": 0` only builds, one with `layers` times single layers. It writes one JSON record with the raw samples,
trtexec's GPU times, to `out`. On an error: one line on stderr, exit status 1, no record.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

TREE = Path(__file__).resolve().parents[1]
if (TREE / "edgevit/devices/trtexec.py").is_file():  # on a device; elsewhere edgevit is installed
    sys.path.insert(0, str(TREE))

from edgevit.devices import trtexec  # noqa: E402
from edgevit.devices.collect import is_fake  # noqa: E402
from edgevit.devices.conditions import read_text  # noqa: E402
from edgevit.devices.engine_cache import engine_key  # noqa: E402
from edgevit.devices.trt_layers import read_layers, read_profile  # noqa: E402
from edgevit.devices.trtexec_log import failure, parse_log, read_times  # noqa: E402
from edgevit.errors import MeasureError  # noqa: E402

KEEP_DAYS = 30
"""Engines that nobody used for so long are removed."""
WARMUP_S = 2.0
"""`--warmUp` of `edgevit.devices.trtexec.measure_command`."""


def run(command: list[str]) -> tuple[str, float]:
    """What trtexec prints, standard error included, and when it began to infer: monotonic seconds.

    Raises MeasureError where it is no trtexec, or it failed.
    """
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
    lines, began = [], time.monotonic()
    for line in child.stdout:  # type: ignore[union-attr]
        lines.append(line)
        if "Starting inference" in line:
            began = time.monotonic()
    status = child.wait()
    log = parse_log("".join(lines))
    if status or not log.passed:
        raise MeasureError(failure(log))
    return "".join(lines), began


def gpu(root: Path = Path("/")) -> str:
    """The board and its GPU, by system files: what an engine belongs to."""
    board = read_text(root / "proc/device-tree/model") or ""
    lines = [
        line.partition(":")[2].strip()
        for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
        for line in (read_text(path) or "").splitlines()
        if line.startswith("Model:")
    ]
    return "; ".join(filter(None, [board, *lines])) or platform.node()


def built(program: str, version: trtexec.Version, onnx: Path, cache: Path) -> tuple[Path, dict[str, Any]]:
    """The folder with `model.plan` and `layers.json`, and how it came to be. Raises MeasureError."""
    _forget(cache)
    where = gpu()
    folder = cache / engine_key(onnx, where, f"{version}{' fake' if is_fake(program) else ''}")
    if folder.is_dir():
        os.utime(folder)
        facts: dict[str, Any] = json.loads((folder / "built.json").read_text("utf-8"))
        return folder, {**facts, "cached": True}
    cache.mkdir(parents=True, exist_ok=True)
    tactics = cache / f"{version}-{sha256(where.encode()).hexdigest()[:8]}.tactics"  # a rebuild picks the same kernels
    part = Path(tempfile.mkdtemp(prefix="build-", dir=cache))
    try:
        command = trtexec.build_command(
            program, version, str(onnx), str(part / "model.plan"), str(part / "layers.json"), str(tactics)
        )
        start = time.monotonic()
        text, _ = run(command)
        log = parse_log(text)
        facts = {"command": command, "seconds": time.monotonic() - start, "device": where, "errors": list(log.errors)}
        (part / "build.log").write_text(text, "utf-8")
        (part / "built.json").write_text(json.dumps(facts), "utf-8")
        os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder, {**facts, "cached": False}


def _forget(cache: Path) -> None:
    """Remove what nobody used for long; the session's lock keeps others out."""
    for path in cache.glob("*"):
        if path.is_dir() and (path.stat().st_mtime < time.time() - KEEP_DAYS * 86400 or path.name.startswith("build-")):
            shutil.rmtree(path, ignore_errors=True)


def attention(layers: Path) -> dict[str, Any]:
    """How much of attention is one kernel each, and how much a softmax in pieces; what the file cannot tell is said."""
    try:
        found = read_layers(layers.read_text("utf-8", "replace"))
    except (OSError, ValueError, MeasureError) as error:
        return {"unknown": str(error)}
    return {"layers": len(found.names), "fused": len(found.fused), "softmax": len(found.softmax)}


def layers(program: str, folder: Path) -> list[Any]:
    """name, operator and milliseconds of each layer. Raises MeasureError."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "profile.json"
        run(trtexec.profile_command(program, str(folder / "model.plan"), str(out)))
        text = out.read_text("utf-8", "replace")
    return list(map(list, read_profile(text, read_layers((folder / "layers.json").read_text("utf-8", "replace")))))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The whole round: build or find the engine, then one process of trtexec. Raises MeasureError."""
    onnx, options = Path(job["engine"]), {k: v for k, v in job["options"].items() if k != "threads"}
    if not onnx.is_file():
        raise MeasureError(f"engine file {onnx} does not exist")
    if set(options) - {"transfers"}:
        raise MeasureError(f"unknown options {sorted(options)}; known: transfers")
    program = trtexec.find(os.environ, shutil.which, lambda place: Path(place).is_file())
    version = trtexec.parse_version(
        subprocess.run(trtexec.version_command(program), capture_output=True, text=True, errors="replace").stdout
    )
    folder, how = built(program, version, onnx, Path(job["cache"]))
    facts: dict[str, Any] = {
        "schema": 1,
        "runner": "trtexec",
        "runtime": "tensorrt",
        "runtime_version": str(version),
        "threads": 1,
        "fake": is_fake(program),
        "built": how,
        "attention": attention(folder / "layers.json"),
        "placement": [how["device"]],
        "job": job,
    }
    if job.get("layers"):
        return {**facts, "samples_ms": [], "layers": layers(program, folder)}
    if not job["min_samples"]:
        return {**facts, "samples_ms": []}
    with tempfile.TemporaryDirectory() as scratch:
        times = Path(scratch) / "times.json"
        plan, copies = str(folder / "model.plan"), options.get("transfers", False)
        command = trtexec.measure_command(program, version, plan, str(times), job["min_seconds"], copies)
        text, began = run(command)
        samples = read_times(times.read_text("utf-8"))
    return {**facts, **_numbers(text, samples, began, job["min_seconds"]), "applied": {"command": command}}


def _numbers(text: str, samples: list[float], began: float, seconds: float) -> dict[str, Any]:
    """What the log and the samples say."""
    log = parse_log(text)
    quarter = max(1, len(samples) // 4)
    drift = median(samples[-quarter:]) / median(samples[:quarter]) - 1
    if "load_s" not in log.numbers:
        raise MeasureError("trtexec does not say how long it took to load the engine")
    return {
        "load_ms": 1e3 * log.numbers["load_s"],
        "first_ms": None,  # trtexec keeps its warm-up to itself
        "warmup": {"seconds": WARMUP_S, "samples": 0, "stable": abs(drift) <= 0.02},
        "samples_ms": samples,
        "window_s": [began + WARMUP_S, began + WARMUP_S + log.numbers.get("traced_s", seconds)],
        "peak_memory_bytes": _rss_bytes(),
        "trtexec": {**log.numbers, "cuda_graph": log.cuda_graph, "warnings": list(log.warnings)},
    }


def _rss_bytes() -> int:
    """The most that trtexec had resident; what the GPU alone sees is not in it."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(argv: list[str]) -> int:
    """Read the job, write the record beside its place and rename it there: whole or absent."""
    try:
        if len(argv) != 2:
            raise MeasureError(f"usage: python {Path(argv[0]).name} job.json")
        job = json.loads(Path(argv[1]).read_text("utf-8"))
        text = json.dumps(measure(job), allow_nan=False)
        out = Path(job["out"])
        part = out.with_name(out.name + ".part")
        part.write_text(text, "utf-8")
        os.replace(part, out)
    except KeyError as error:
        print(f"runner_trtexec: the job has no {error}", file=sys.stderr)
        return 1
    except (MeasureError, OSError, ValueError) as error:
        print(f"runner_trtexec: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

"""What trtexec printed and wrote: the summary of a run, its complaints, and the time of each inference."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgevit.devices.trtexec import BANNER, Version, parse_version
from edgevit.errors import MeasureError

LINE = re.compile(r"^\[[\d/]+-[\d:]+\] \[([VIWEF])\] (?:\[TRT\] )?(.*)$", re.MULTILINE)
METRIC = re.compile(r"^([\w -]+): (min = .* ms.*)$")  # Latency, GPU Compute Time, ...
VALUE = re.compile(r"(min|max|mean|median|percentile\(([\d.]+)%\)) = ([\d.e+-]+) ms")
NUMBERS = {
    "throughput_qps": re.compile(r"^Throughput: ([\d.e+-]+) qps"),
    "build_s": re.compile(r"^Engine built in ([\d.e+-]+) sec"),
    "load_s": re.compile(r"^Engine deserialized in ([\d.e+-]+) sec"),
    "traced_s": re.compile(r"^Timing trace has \d+ queries over ([\d.e+-]+) s"),
    "engine_mib": re.compile(r"^Created engine with size: ([\d.e+-]+) MiB"),
    "activations_mib": re.compile(r"^Created execution context with device memory size: ([\d.e+-]+) MiB"),
    "gpu_build_mib": re.compile(r"Peak memory usage of TRT CPU/GPU memory allocators: .*GPU ([\d.]+) MiB"),
}
ADVICE = (
    (re.compile(r"must have same input types|Half and Float"), "two types meet in the ONNX file: export it again"),
    (re.compile(r"Unknown option: "), "this version has no such flag: docs/tensorrt.md"),
    (re.compile(r"[Pp]lugin not found|no importer registered"), "this version lacks the operator; try a newer one"),
)
"""What complaints say, the first known one first, and what to do."""


@dataclass(frozen=True)
class Log:
    """One run.

    passed: None where the log ends early. metrics_ms: name → min, max, mean, median, p90, ... in milliseconds.
    numbers: see `NUMBERS`. warnings: lines that question the result. errors: what it complained about, in order.
    """

    version: Version
    passed: bool | None
    metrics_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    cuda_graph: bool = False
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


def parse_log(text: str) -> Log:
    """Standard output and error together. Raises MeasureError where it is no log of trtexec."""
    ends = [state for state, _ in BANNER.findall(text) if state != "RUNNING"]  # other text may follow the last one
    metrics: dict[str, dict[str, float]] = {}
    numbers: dict[str, float] = {}
    lines = LINE.findall(text)
    for _, line in lines:
        metric = METRIC.match(line)
        if metric:
            metrics[metric[1]] = {f"p{p}" if p else name: float(v) for name, p, v in VALUE.findall(metric[2])}
        numbers |= {name: float(found[1]) for name, pattern in NUMBERS.items() if (found := pattern.search(line))}
    return Log(
        parse_version(text),
        ends[-1] == "PASSED" if ends else None,
        metrics,
        numbers,
        "Successfully captured CUDA graph" in text,
        tuple(line[2:] for level, line in lines if level == "W" and line.startswith("* ")),
        tuple(line for level, line in lines if level in "EF"),
    )


def failure(log: Log) -> str:
    """Why a run that did not pass failed, in a line, with what to do where that is known."""
    if log.passed is None:
        return f"trtexec {log.version} did not finish: the log ends early"
    known = ((error, advice) for pattern, advice in ADVICE for error in log.errors if pattern.search(error))
    text, advice = next(known, (log.errors[0] if log.errors else "it gives no reason", "its log says more"))
    return f"trtexec {log.version} failed: {text}; {advice}"


def read_times(text: str) -> list[float]:
    """`--exportTimes` → milliseconds of GPU time of each inference, warm-up left out. Raises MeasureError."""
    rows = json.loads(text)
    if not rows or "computeMs" not in rows[0]:
        raise MeasureError("this is no --exportTimes of trtexec: no row has computeMs")
    return [float(row["computeMs"]) for row in rows]

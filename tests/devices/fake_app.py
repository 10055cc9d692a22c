"""FAKE runner of a phone: answers jobs of edgevit.devices.in_app from a folder for the phone. It measures nothing.

    python fake_app.py CONTAINER --job Documents/edgevit/job.json

CONTAINER/outputs.json: what a check answers. CONTAINER/fault: how it misbehaves; CONTAINER/record: what every round's
record is instead, byte by byte.
"""

import json
import math
import sys
from pathlib import Path

container, _, place = Path(sys.argv[1]), *sys.argv[2:]
job = json.loads((container / place).read_text())
work = (container / place).parent
fault = (container / "fault").read_text() if (container / "fault").exists() else ""
answer = {"schema": 1, "id": job["id"]}
if fault == "dies":
    sys.exit(0)
if job["kind"] == "about":
    present = [tree for tree in job["trees"] if (work / f"trees/{tree}.whole").exists()]
    facts = {"model": "iPhone15,2", "os": "iOS 26.0", "arch": "arm64", "cores": 6, "thermal": "nominal"}
    answer |= {**facts, "low_power": fault == "low power", "present": present}
elif job["kind"] == "check":
    assert (container / job["engine"]).exists(), job["engine"]
    assert (work / "input.f32").stat().st_size == job["count"] * 4 * math.prod(job["input"]["shape"])
    answer["outputs"] = json.loads((container / "outputs.json").read_text())
else:
    times = {"load_ms": 40.0, "first_ms": 9.0, "samples_ms": [2.0 + n % 5 / 100 for n in range(job["min_samples"])]}
    warm = {"seconds": 0.5, "samples": 9, "stable": True}
    placed = {"operators": {"neural_engine": 98, "cpu": 2}, "off_neural_engine": {"topk": 2}}
    heat = {"thermal_before": "nominal", "thermal_after": "serious" if fault == "hot" else "nominal"}
    answer |= {**times, **heat, "warmup": warm, "peak_memory_bytes": 1 << 26, "placement": placed}
    answer |= {"runtime": "Core ML", "runtime_version": "26.0"}
answer |= {
    "another launch": {"id": "old"},
    "old app": {"schema": 0},
    "refuses": {"error": "no such model"},
    "no cores": {"cores": 0},
}.get(fault, {})
if fault == "no time":
    answer.pop("load_ms", None)
raw = container / "record"
if job["kind"] == "round" and raw.exists():
    (work / "record.json").write_bytes(raw.read_bytes().replace(b"@ID@", job["id"].encode()))
else:
    (work / "record.json").write_text(json.dumps(answer))

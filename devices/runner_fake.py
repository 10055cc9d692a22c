"""Fabricate the record of a round, for tests: `python runner_fake.py job.json`. It measures nothing.

Options: `latency_ms` (the middle), `jitter` (relative spread of samples and of rounds), `slow_ms` (added to
every tenth sample, to make outliers). The record says `"fake": true`, and so does everything computed from
it. The same job gives the same samples; the job's `round` number makes rounds differ. An engine file that
does not exist is an error, as it is for the real runners.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any


def fabricate(job: dict[str, Any]) -> dict[str, Any]:
    """The record a real runner would write, from a random generator."""
    if not Path(job["engine"]).is_file():
        raise RuntimeError(f"engine file {job['engine']} does not exist")
    options = {"latency_ms": 2.0, "jitter": 0.02, "slow_ms": 0.0, "threads": 1, **job["options"]}
    draw = random.Random(f"{job['seed']} {Path(job['engine']).name} {job.get('round', 0)}")
    middle = options["latency_ms"] * (1 + options["jitter"] * draw.uniform(-1, 1))
    # As many as the time limits would allow at this latency; no clock is read.
    most = max(1, int(job["max_seconds"] * 1e3 / middle))
    count = min(most, max(job["min_samples"], int(job["min_seconds"] * 1e3 / middle)))
    samples = [middle * (1 + options["jitter"] * draw.uniform(-1, 1)) for _ in range(count)]
    samples[9::10] = [value + options["slow_ms"] for value in samples[9::10]]
    return {
        "schema": 1,
        "runner": "fake",
        "fake": True,
        "runtime": "fake",
        "runtime_version": "0",
        "threads": options["threads"],
        "load_ms": 10 * middle,
        "baseline_memory_bytes": 1 << 20,
        "load_memory_bytes": 3 << 19,
        "applied": {},
        "first_ms": 3 * middle,
        "warmup": {"seconds": job["warmup_s"], "samples": 0, "stable": True},
        "samples_ms": samples,
        "peak_memory_bytes": 2 << 20,
        "python": "",
        "machine": "",
        "job": job,
    }


def main(argv: list[str]) -> int:
    """Read the job, write the record beside its place and rename it there."""
    try:
        if len(argv) != 2:
            raise RuntimeError(f"usage: python {Path(argv[0]).name} job.json")
        job = json.loads(Path(argv[1]).read_text("utf-8"))
        text = json.dumps(fabricate(job), allow_nan=False)
        out = Path(job["out"])
        part = out.with_name(out.name + ".part")
        part.write_text(text, "utf-8")
        os.replace(part, out)
    except KeyError as error:
        print(f"runner_fake: the job has no {error}", file=sys.stderr)
        return 1
    except Exception as error:  # the process ends here: the error becomes the one line
        print(f"runner_fake: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

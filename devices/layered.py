"""The layer times of bundles, each in one fresh process, here or on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgevit.devices.bench import LOAD_LIMIT_S, build_request, opened
from edgevit.devices.by_layer import summary
from edgevit.devices.config import Device
from edgevit.devices.plan import BUILDERS, BenchPlan, Job
from edgevit.errors import MeasureError
from edgevit.progress import Progress

TIMED = ("ort", "openvino", *BUILDERS)
"""Runners whose runtime times single layers."""


def time_layers(
    jobs: Sequence[Job], plan: BenchPlan, progress: Progress | None = None, device: Device | None = None
) -> dict[str, dict[str, Any]]:
    """Bundle → `edgevit.devices.by_layer.summary`, with the runtime and whether it is fake.

    Raises MeasureError: a runtime that times no layers, or a process failed.
    """
    for job in jobs:
        if job.runner not in TIMED:
            raise MeasureError(f"{job.bundle}: runner {job.runner!r} times no single layers; {', '.join(TIMED)} do")
    found: dict[str, dict[str, Any]] = {}
    with opened(device, jobs) as session:
        cores = session.state()["usable_cores"]
        for number, job in enumerate(jobs):
            if progress:
                progress(job.bundle, number, len(jobs))
            request = build_request(job, plan, cores, session.engine(job)) | {"layers": True}
            record = session.run(request, f"{job.bundle}: timing layers", LOAD_LIMIT_S)
            runtime = {key: record[key] for key in ("runtime", "runtime_version", "fake")}
            found[job.bundle] = {"bundle": job.bundle, **runtime, **summary(record["layers"])}
        session.end()
    return found

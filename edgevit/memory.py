"""What an app takes on with a bundle: bytes on disk, and memory of a fresh process that loads it and runs it."""

from __future__ import annotations

from typing import Any

from edgevit.bundle import Bundle
from edgevit.errors import EdgeVitError


def sizes(bundle: Bundle) -> dict[str, int]:
    """Bytes of the bundle's files, and of its folders as a whole, the largest first."""
    found: dict[str, int] = {}
    for name in bundle.manifest["files"]:
        top = name.partition("/")[0]
        found[top] = found.get(top, 0) + (bundle.folder / name).stat().st_size
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def memory(bundle: Bundle) -> dict[str, Any]:
    """Resident bytes of a process that holds the runtime alone, without edgevit and torch.

    `imported`: after importing the runtime (None for web: a browser imports nothing apart). `loaded`, `ran`: the peak
    after loading the engine and after inference. For web it is the page's own process. Where this machine cannot run
    the engine: only `not_measured`, the reason.
    """
    from edgevit.devices.bench import once
    from edgevit.measure import job

    try:
        record = once(job(bundle))
    except EdgeVitError as error:
        return {"not_measured": str(error)}
    if record["fake"]:
        return {"not_measured": "the fake target runs nothing"}
    if "load_memory_bytes" not in record:
        return {"not_measured": f"the runner of {bundle.manifest['target']} does not say"}
    keys = {"imported": "baseline_memory_bytes", "loaded": "load_memory_bytes", "ran": "peak_memory_bytes"}
    return {name: record.get(key) for name, key in keys.items()}

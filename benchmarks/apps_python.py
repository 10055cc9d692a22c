"""One round of the Python app: `python apps_python.py JOB`; what apps.py starts. JOB and the record are JSON objects.

The app's own Classifier on a prepared tensor, in turns with the same session's bare call, which is the one that
`edgevit profile` times; then on whole images.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def bare_ort(engine: Any, tensor: Any) -> Callable[[], object]:
    """As runner_ort.py: input and output bound once."""
    import onnxruntime as ort

    session = engine._session
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(tensor))
    for entry in session.get_outputs():
        buffer = ort.OrtValue.ortvalue_from_shape_and_type(entry.shape, tensor.dtype, "cpu")
        binding.bind_ortvalue_output(entry.name, buffer)
    return lambda: session.run_with_iobinding(binding)


def bare_openvino(engine: Any, tensor: Any) -> Callable[[], object]:
    """As runner_openvino.py: the input shares the array's memory, the output stays where it was written."""
    import openvino

    request = engine._request
    request.set_input_tensor(openvino.Tensor(tensor, shared_memory=True))
    return lambda: request.infer(share_outputs=True)


BARE = {"ort": bare_ort, "openvino": bare_openvino}


def load(path: str) -> ModuleType:
    """A runner of edgevit, a file: for its loops and its clock."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_turns(once: Callable[..., int], bare: Any, app: Any, job: dict[str, Any]) -> dict[str, list[float]]:
    """Milliseconds of both, A B B A."""
    found: dict[str, list[float]] = {"bare": [], "app": []}
    gc.collect()
    gc.disable()
    end = time.perf_counter() + 2 * job["min_seconds"]
    while len(found["app"]) < job["min_samples"] or time.perf_counter() < end:
        for name, run in (("bare", bare), ("app", app), ("app", app), ("bare", bare)):
            found[name].append(once(run) / 1e6)
    gc.enable()
    return found


def main() -> None:
    """Open the app, warm up, sample."""
    job = json.loads(sys.argv[1])
    loop = load(job["runner"])
    sys.path.insert(0, job["app"])
    from classifier import Classifier  # type: ignore[import-not-found]
    from classifier.classifier import open_image  # type: ignore[import-not-found]

    classifier = Classifier(threads=job["threads"])
    image = open_image(Path(job["image"]))
    tensor = loop.pseudo_random(list(classifier.shape), job["seed"])
    bare = BARE[job["target"]](classifier.engine, tensor)
    classifier.run(image)
    loop.warm_up(bare, job["warmup_s"], job["max_seconds"])
    found = in_turns(loop.once_ns, bare, lambda: classifier.run_tensor(tensor), job)
    found["image"] = loop.sample(lambda: classifier.run(image), job)
    print(json.dumps({**found, "threads": job["threads"]}))


if __name__ == "__main__":
    main()

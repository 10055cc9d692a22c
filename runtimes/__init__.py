"""edgevit.runtimes: one file per target. The only code that imports a vendor's runtime, inside its methods.

TARGETS is the whole list, in the order it is shown. A target is one file with one class (protocol:
`edgevit.runtimes.base.Runtime`), one line here, one test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from edgevit.errors import RuntimeRefusal
from edgevit.names import did_you_mean, named

if TYPE_CHECKING:
    from edgevit.runtimes.base import Runtime

TARGETS = {
    "onnx": "edgevit.runtimes.onnx_file:OnnxFile",
    "ort": "edgevit.runtimes.ort:Ort",
    "openvino": "edgevit.runtimes.ov:OpenVino",
    "trt": "edgevit.runtimes.trt:Trt",
    "trt-rtx": "edgevit.runtimes.trt_rtx:TrtRtx",
    "coreml": "edgevit.runtimes.coreml:CoreMl",
    "coreai": "edgevit.runtimes.core_ai:CoreAi",
    "executorch": "edgevit.runtimes.pte:ExecuTorch",
    "web": "edgevit.runtimes.web:Web",
}
HIDDEN = {"fake": "edgevit.runtimes.fake:Fake"}  # for tests: builds and runs without any package
ALIASES = {
    "onnxruntime": "ort",
    "ov": "openvino",
    "tensorrt": "trt",
    "engine": "trt",
    "tensorrt-rtx": "trt-rtx",
    "mlpackage": "coreml",
    "aimodel": "coreai",
    "pte": "executorch",
    "onnxruntime-web": "web",
    "browser": "web",
}


def runtime(name: str, options: Mapping[str, str] | None = None) -> Runtime:
    """The runtime of a target name or alias, with its options set. Raises RuntimeRefusal with what to type instead."""
    key = ALIASES.get(name.lower(), name.lower())
    if key == "apple":
        raise RuntimeRefusal("target 'apple' is two: coreml (iOS 16 to 26) or coreai (iOS and macOS 27); name one")
    known = {**TARGETS, **HIDDEN}
    if key not in known:
        hint = did_you_mean(key, [*TARGETS, *ALIASES])
        raise RuntimeRefusal(f"unknown target {name!r}{hint}; targets: {', '.join(TARGETS)}")
    cls = named(known[key])
    names = [field.name for field in fields(cls)]
    for option in options or ():
        if option not in names:
            has = f"its options: {', '.join(names)}" if names else "it has none"
            raise RuntimeRefusal(f"target {key} has no option {option!r}{did_you_mean(option, names)}; {has}")
    found: Runtime = cls(**(options or {}))
    return found

"""What a device has: runtimes with versions, and programs that measure or hold clocks. Sent to the device."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from typing import Any

from edgevit.devices import trtexec
from edgevit.errors import MeasureError

RUNTIMES = {
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "tensorrt": ("tensorrt",),
}
"""What is imported → the distributions that may bring it."""

PROGRAMS = (
    *("nvpmodel", "jetson_clocks", "tegrastats"),
    *("vcgencmd", "powermetrics"),
)


def probe() -> dict[str, Any]:
    """Python, the runtimes' versions and the programs' places; null where there is none."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "root": os.geteuid() == 0,
        "runtimes": {name: _version(distributions) for name, distributions in RUNTIMES.items()},
        "programs": {"trtexec": _trtexec(), **{name: shutil.which(name) for name in PROGRAMS}},
    }


def _trtexec() -> str | None:
    """It is on no PATH where packages put it."""
    try:
        return trtexec.find(os.environ, shutil.which, os.path.isfile)
    except MeasureError:
        return None


def _version(distributions: tuple[str, ...]) -> str | None:
    """Of the first that is installed."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None

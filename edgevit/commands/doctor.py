"""`edgevit doctor`: this machine and its packages."""

from __future__ import annotations

import argparse
import platform
import sys
from importlib import metadata
from typing import Any

from edgevit.commands.targets import survey
from edgevit.commands.terminal import print_json

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "numpy",
    "pillow",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "coremltools",
    "coreai-core",
    "coreai-torch",
    "executorch",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of doctor."""
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Print what edgevit sees, and what to do about what is missing. Always exit 0: a finding is not a failure."""
    found = examine()
    if arguments.json:
        print_json(found)
        return 0
    machine = found["machine"]
    print(f"edgevit {found['edgevit']}, Python {found['python']}, {platform.system()} {platform.machine()}")
    print(f"CPU       {machine['cpu']}, {machine.get('usable_cores', '?')} cores usable")
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in found["packages"].items())
    print(f"packages  {listed}")
    for row in found["targets"]:
        state = f"ready ({row['version']})" if row["available"] else row["install"]
        print(f"target    {row['name']:10} {state}")
    for text in found["findings"]:
        print(f"finding   {text}")
    return 0


def examine() -> dict[str, Any]:
    """Versions, machine, targets, and findings with what to do."""
    from edgevit.devices import conditions
    from edgevit.version import __version__

    packages = {name: _version(name) for name in PACKAGES}
    state = conditions.state()
    findings = []
    if packages["timm"] and not _imports("timm"):
        findings.append(
            "timm does not import: torchvision does not match torch; pip install -U torch torchvision together"
        )
    if not packages["timm"]:
        findings.append("timm is missing, so only .pt2, .onnx and pickled modules load: pip install 'edgevit[timm]'")
    if state.get("governor") not in ("performance", "unknown"):
        findings.append(f"CPU governor is {state['governor']}: latencies will scatter")
    return {
        "edgevit": __version__,
        "python": sys.version.split()[0],
        "packages": packages,
        "machine": {**conditions.device(), **state},
        "targets": survey(),
        "findings": findings,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _imports(name: str) -> bool:
    from importlib import import_module

    try:
        import_module(name)
    except (ImportError, RuntimeError):  # a torchvision of another torch build raises RuntimeError
        return False
    return True

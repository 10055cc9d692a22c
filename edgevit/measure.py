"""Bundles → jobs for the device runner, and what was measured → a bundle's report.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgevit.bundle import Bundle
from edgevit.devices.plan import IN_APP, Job
from edgevit.errors import MeasureError
from edgevit.runtimes import runtime

if TYPE_CHECKING:
    from edgevit.runtimes.base import Runtime

BUILT_THERE = {"trt": ("trtexec", "model.onnx")}
"""Targets whose engine a device builds: the runner that does, and the file it builds from."""


def job(bundle: Bundle, name: str | None = None, there: bool = False) -> Job:
    """The measurement job of a verified bundle, here or on a device. Raises MeasureError where it cannot be timed."""
    engine, target = bundle.engine, runtime(bundle.manifest["target"])
    if there and target.name in BUILT_THERE:
        runner, source = BUILT_THERE[target.name]
        files = {source: bundle.manifest["files"][source]}
        shape = engine.inputs.shape
        return Job(
            name or bundle.name, runner, bundle.folder / source, {}, engine.inputs.name, shape, bundle.folder, files
        )
    runner = target.name if there and target.name in IN_APP else target.runner
    if not runner:
        raise MeasureError(f"{bundle.name}: this machine cannot time {target.name}: {target.runs_here()}")
    if not there:
        check_times_here(target, engine.precision, bundle.name)
    return Job(
        bundle=name or bundle.name,
        runner=runner,
        engine=engine.folder / engine.entry,
        options=dict(engine.options),
        input_name=engine.inputs.name,
        input_shape=engine.inputs.shape,
        folder=bundle.folder,
        files=bundle.manifest["files"],
    )


def check_times_here(target: Runtime, precision: str, name: str) -> None:
    """See that this machine computes a precision as the engine is meant to. Raises MeasureError."""
    reason = target.runs_here(precision) if precision in target.policy.elsewhere else None
    if reason:
        raise MeasureError(
            f"{name}: this machine cannot time {target.name} {precision}: {reason}; give --device NAME of one that "
            "does, or export in fp32"
        )


def check_kind(bundle: Bundle, kind: str) -> None:
    """See that a device of that transport can take a bundle. Raises MeasureError."""
    target = bundle.manifest["target"]
    if kind == "browser" and target != "web":
        raise MeasureError(f"{bundle.name}: target {target} does not run in a browser: export with --target web")
    if target in IN_APP and not kind.startswith("ios-"):
        raise MeasureError(
            f"{bundle.name}: {target} runs on an iPhone or iPad: give --device NAME of transport ios-usb or ios-mac"
        )


def about(bundle: Bundle) -> dict[str, Any]:
    """What a record says of the engine besides its name: hash, precision, target, model, schedule, MACs."""
    manifest = bundle.manifest
    return {
        "sha256": manifest["files"].get(manifest["entry"]),  # none: the entry is a folder, `files` has its parts
        "files": dict(manifest["files"]),
        "precision": manifest["precision"],
        "target": manifest["target"],
        "built_by": f"{manifest['runtime']['name']} {manifest['runtime']['version']}",
        "model": manifest["model"]["name"],
        "schedule": manifest["schedule"]["text"],
        "macs": manifest["schedule"]["macs"],
        "size_bytes": bundle.size_bytes,
    }


def unique_names(bundles: list[Bundle]) -> list[str]:
    """Folder names where they differ, whole paths where two are alike."""
    names = [b.name for b in bundles]
    return names if len(set(names)) == len(names) else [str(b.folder) for b in bundles]

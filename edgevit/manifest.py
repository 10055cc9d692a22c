"""What a bundle says of itself: manifest.json, schema 1 (docs/bundle.md)."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.bundle import SCHEMA, write_json
from edgevit.errors import EdgeVitError
from edgevit.hashes import sha256_file
from edgevit.tokens.schedule import TokenSchedule
from edgevit.version import __version__

if TYPE_CHECKING:
    from edgevit.runtimes.base import Runtime
    from edgevit.stages import Checkpoint, Engine, Graph, ReducedModel


SCHEDULE = "schedule.json"


def copy_labels(source: Path | None, own: Sequence[str] | None, folder: Path, graph: Graph) -> str | None:
    """Write labels.txt, one name a line, as many as the model has classes: the user's file, else the model's `own`."""
    classes = output_shape(graph)[-1]
    if source is None:
        if own is None or len(own) != classes:
            return None
        names = list(own)
    else:
        try:
            names = source.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise EdgeVitError(f"cannot read --labels {source}: {error}") from error
    if len(names) != classes:
        raise EdgeVitError(f"--labels {source} has {len(names)} lines; the model has {classes} classes")
    (folder / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return "labels.txt"


def output_shape(graph: Graph) -> list[int]:
    """Shape of the program's one output."""
    output = next(n for n in graph.program.graph.nodes if n.op == "output")
    return [int(s) for s in output.args[0][0].meta["val"].shape]


def make_manifest(
    checkpoint: Checkpoint,
    target: Runtime,
    engine: Engine,
    graph: Graph,
    reduced: ReducedModel | None,
    check: dict[str, Any],
    labels: str | None,
) -> dict[str, Any]:
    """The manifest of a built engine; hashes the files as they lie in its folder."""
    from edgevit.reduce import dense_macs

    dense = reduced.dense_macs if reduced else dense_macs(graph.program.module(), engine.inputs.shape)
    schedule = reduced.schedule if reduced else TokenSchedule.none()
    names = [*engine.files, *([labels] if labels else [])]
    if not schedule.is_none:  # what --reduce takes again, for another target or a later version of the weights
        write_json(engine.folder / SCHEDULE, schedule.to_dict())
        names.append(SCHEDULE)
    return {
        "schema": SCHEMA,
        "edgevit": __version__,
        "model": {
            "name": checkpoint.name,
            "arch": checkpoint.arch,
            "sha256": checkpoint.sha256,
            **({"onnx": dict(checkpoint.origin)} if checkpoint.origin else {}),
        },
        "schedule": {
            "text": str(schedule),
            **schedule.to_dict(),
            "tokens": list(reduced.tokens) if reduced else [],
            "macs": {"dense": dense, "reduced": reduced.reduced_macs if reduced else dense},
        },
        "precision": engine.precision,
        "target": target.name,
        "runtime": {
            "name": engine.runtime,
            "version": engine.runtime_version,
            "options": dict(engine.options),
        },
        "built_on": {"machine": platform.machine(), "system": platform.system()},
        "input": {"name": engine.inputs.name, "shape": list(engine.inputs.shape), "dtype": "float32"},
        "output": {"name": "logits", "shape": output_shape(graph), "dtype": "float32"},
        "preprocess": checkpoint.preprocess.to_dict(),
        "labels": labels,
        "entry": engine.entry,
        "files": {name: sha256_file(engine.folder / name) for name in names},
        "check": check,
        "passes": list(graph.passes),
        "kept_float": [asdict(r) for r in getattr(graph, "kept_float", ())],
        "quantization": [dict(entry) for entry in getattr(graph, "log", ())],
    }

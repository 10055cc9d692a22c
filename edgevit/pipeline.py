"""The verbs in order: load, adapt, reduce, trace, quantize, build, check, write the bundle, hold the gates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.bundle import MANIFEST, REPORT, SCHEMA, Bundle, staged, write_json
from edgevit.data import Dataset, read_dataset
from edgevit.devices.config import LOCAL, find
from edgevit.errors import EdgeVitError, GraphError, QuantError, RuntimeRefusal, ScheduleError
from edgevit.manifest import copy_labels, make_manifest
from edgevit.measure import check_times_here
from edgevit.model_settings import ModelSettings
from edgevit.progress import Progress, silent
from edgevit.quant.scheme import OTHERS
from edgevit.runtimes import runtime
from edgevit.runtimes.cpu import unmeasured
from edgevit.tokens.schedule import TokenSchedule, parse_schedule

if TYPE_CHECKING:
    from torch import nn

    from edgevit.quant.calibration import Calibration
    from edgevit.runtimes.base import Runtime
    from edgevit.stages import Checkpoint, Graph, InputSpec, ReducedModel, VitModel


@dataclass(frozen=True, kw_only=True)
class ExportSettings(ModelSettings):
    """Everything `edgevit export` needs. Impossible combinations are refused before anything is loaded."""

    target: str
    out: Path
    reduce: str = "none"
    precision: str | None = None  # None: the target's default
    calib: Path | None = None
    eval: Path | None = None
    max_drop: float | None = None
    min_speedup: float | None = None
    batch: int = 1
    labels: Path | None = None
    device: str = LOCAL  # where min_speedup measures
    options: Mapping[str, str] = field(default_factory=dict)  # of the target
    force: bool = False

    def __post_init__(self) -> None:
        if self.precision and (self.precision.startswith("int8") or self.precision in OTHERS) and self.calib is None:
            raise QuantError(
                f"{self.precision} needs calibration images: pass --calib DATA (a CSV with file,label, an image "
                "folder or .tar shards; 100 or more images like the ones it will see)"
            )
        if self.max_drop is not None and self.eval is None:
            raise EdgeVitError("--max-drop compares accuracy, so it needs --eval DATA")
        for flag, value in (("--max-drop", self.max_drop), ("--min-speedup", self.min_speedup)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise EdgeVitError(f"{flag} {value:g} must be a number, 0 or more")
        if self.batch < 1:
            raise EdgeVitError(f"--batch {self.batch} must be 1 or more")
        if self.device != LOCAL and self.min_speedup is None:
            raise EdgeVitError(f"--device {self.device} is where --min-speedup measures: give both, or neither")


@dataclass(frozen=True)
class Exported:
    """What an export made."""

    bundle: Bundle
    notes: tuple[str, ...]
    gate: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys of the command-line contract."""
        m = self.bundle.manifest
        return {
            "bundle": str(self.bundle.folder),
            "target": m["target"],
            "precision": m["precision"],
            "schedule": m["schedule"]["text"],
            "tokens": m["schedule"]["tokens"],
            "macs": m["schedule"]["macs"],
            "size_bytes": self.bundle.size_bytes,
            "checks": {"static_shapes": True, "forbidden_ops": [], **m["check"]},
            "kept_float": m["kept_float"],
            "partition": m["runtime"]["options"].get("partition"),
            "notes": list(self.notes),
            "gate": self.gate,
        }


def export(settings: ExportSettings, progress: Progress = silent) -> Exported:
    """MODEL → bundle. Raises EdgeVitError; on any failure nothing is left at `settings.out`."""
    target = runtime(settings.target, settings.options)
    target.version()
    if settings.device != LOCAL:
        find(settings.device)  # a name that is none ends here, not after the build
    precision = resolved(target, settings.precision)
    if settings.min_speedup is not None and settings.device == LOCAL:
        check_times_here(target, precision, "--min-speedup")
    schedule = parse_schedule(settings.reduce)
    if schedule.is_auto and settings.calib is None:
        raise ScheduleError(
            f"{schedule} is searched on calibration images: pass --calib DATA (100 or more; labels are not read)"
        )
    calib = read_dataset(settings.calib, progress) if settings.calib else None
    evaluation = read_dataset(settings.eval, progress) if settings.eval else None
    with staged(settings.out, settings.force) as folder:
        progress("load", 0, 0)
        checkpoint = settings.load(calib)
        data = calib or evaluation
        road = prepare(checkpoint, target, precision, schedule, data, settings, progress)
        bundle = finish(road, folder, {}, progress)
        gate = None
        if evaluation or settings.min_speedup is not None:
            from edgevit.gate import hold

            bundle, gate = hold(road, bundle, evaluation, settings, progress)
        notes = (*(road.reduced.notes if road.reduced else ()), *(unmeasured(precision) if gate is None else ()))
    return Exported(Bundle(settings.out, bundle.manifest), notes, gate)


def resolved(target: Runtime, asked: str | None) -> str:
    """The exact precision that is built: the asked one, or the target's default. Raises RuntimeRefusal."""
    precision = target.policy.precisions[0] if asked is None else asked
    if precision not in target.policy.precisions:
        known = ", ".join(target.policy.precisions)
        raise RuntimeRefusal(f"target {target.name} does not build {precision}; it builds {known}")
    return target.resolve(precision)


@dataclass(frozen=True)
class Road:
    """A model on its way to a target, in front of the last choice: which layers become integers."""

    checkpoint: Checkpoint
    target: Runtime
    precision: str
    data: Dataset | None
    labels: Path | None
    reduced: ReducedModel | None
    graph: Graph
    calibration: Calibration | None
    gated: bool

    @property
    def is_reduced(self) -> bool:
        """Whether a schedule changes the model."""
        return self.reduced is not None and not self.reduced.schedule.is_none


def prepare(
    checkpoint: Checkpoint,
    target: Runtime,
    precision: str,
    schedule: TokenSchedule,
    data: Dataset | None,
    settings: ExportSettings,
    progress: Progress,
) -> Road:
    """A loaded model → its traced, reduced program, and what calibration saw of it."""
    from edgevit.export.rewrite import rewritten
    from edgevit.quant.calibration import calibrate
    from edgevit.stages import InputSpec

    inputs = InputSpec(settings.batch, *checkpoint.preprocess.size)
    vit = _adapted(checkpoint, inputs, needed=not schedule.is_none)
    if vit and schedule.is_auto:
        assert data is not None  # export() refuses auto without --calib, and then data is that
        schedule = _search(vit, checkpoint, schedule, data, progress)
    progress("reduce and trace", 0, 0)
    reduced, graph = _trace(vit, checkpoint, schedule, target, inputs, precision)
    calibration = None
    scheme = target.policy.quantizes(precision)
    if scheme is not None:
        assert data is not None  # ExportSettings refuses int8 without --calib, and then data is that
        batches = -(-len(data) // inputs.batch)
        images = data.tensors(checkpoint.preprocess, inputs.batch)
        calibration = calibrate(graph, scheme, target.policy.rewrites, images, batches, progress)
    elif not schedule.is_none:
        graph = rewritten(graph, target.policy.forms)
    gated = settings.max_drop is not None
    return Road(checkpoint, target, precision, data, settings.labels, reduced, graph, calibration, gated)


def finish(road: Road, folder: Path, keep: Mapping[str, str], progress: Progress) -> Bundle:
    """Quantize, build and check: a verified bundle in `folder`. keep: layers that stay float, with the reason."""
    from edgevit.check import check_engine, check_images
    from edgevit.quant.apply import apply

    target, checkpoint, graph = road.target, road.checkpoint, road.graph
    if road.calibration:
        graph = apply(road.calibration, keep, progress)
    refusals = target.refuses(graph)
    if refusals:
        first = refusals[0]
        raise RuntimeRefusal(f"{target.name} refuses {len(refusals)} nodes; first {first.layer}: {first.reason}")
    progress(f"build {target.name}", 0, 0)
    engine = target.build(graph, folder, road.precision)
    progress("check against eager", 0, 0)
    images, source = check_images(checkpoint.preprocess, road.data)
    reference = road.reduced.module if road.reduced else checkpoint.callable()
    own = graph.program.module() if road.calibration else None
    check = check_engine(engine, target, reference, images, source, road.is_reduced, own, road.gated)
    labels = copy_labels(road.labels, checkpoint.labels, folder, graph)
    manifest = make_manifest(checkpoint, target, engine, graph, road.reduced, check, labels)
    write_json(folder / MANIFEST, manifest)
    write_json(folder / REPORT, {"schema": SCHEMA, "evaluations": [], "profiles": []})
    return Bundle.load(folder)


def _search(
    vit: VitModel, checkpoint: Checkpoint, schedule: TokenSchedule, data: Dataset, progress: Progress
) -> TokenSchedule:
    """`METHOD:auto` → the schedule whose outputs stay nearest to the dense model's on the calibration images."""
    from itertools import islice

    import numpy as np
    import torch

    from edgevit.search import BATCH, MOST_IMAGES, search

    read = islice(data.tensors(checkpoint.preprocess, BATCH), MOST_IMAGES // BATCH)
    images = torch.from_numpy(np.concatenate(list(read)))[: len(data)]  # the last batch was padded
    return search(
        vit, schedule, torch.split(images, BATCH), lambda done, total: progress("search schedule", done, total)
    ).schedule


def _eager(checkpoint: Checkpoint) -> nn.Module:
    """The module, which reduction takes apart. Raises UnsupportedModel for an exported program."""
    if checkpoint.module is not None:
        return checkpoint.module
    from edgevit.adapters import ADAPTERS
    from edgevit.errors import UnsupportedModel

    raise UnsupportedModel(
        f"{checkpoint.name} is an exported program, whose blocks cannot be taken apart; reduce the eager model "
        f"(families with an adapter: {'; '.join(ADAPTERS)}), or drop --reduce"
    )


def _adapted(checkpoint: Checkpoint, inputs: InputSpec, needed: bool) -> VitModel | None:
    """The model's parts; None where no adapter knows it and no schedule needs them: any traceable model will do."""
    from edgevit.adapters import adapt
    from edgevit.errors import UnsupportedModel

    if checkpoint.module is None and not needed:
        return None
    try:
        vit = adapt(_eager(checkpoint))
    except UnsupportedModel:
        if needed:
            raise
        return None
    if vit.image_size != (inputs.height, inputs.width):
        raise GraphError(
            f"{checkpoint.name} takes images {vit.image_size}, and preprocessing makes "
            f"{(inputs.height, inputs.width)}; pass --input-size or --preprocess that fits"
        )
    return vit


def _trace(
    vit: VitModel | None,
    checkpoint: Checkpoint,
    schedule: TokenSchedule,
    target: Runtime,
    inputs: InputSpec,
    precision: str,
) -> tuple[ReducedModel | None, Graph]:
    from edgevit.export.trace import trace, trace_checkpoint
    from edgevit.reduce import reduce
    from edgevit.reparameterize import reparameterize

    if vit is None:
        if checkpoint.module is None or not target.policy.quantizes(precision):  # dense float is the model as it is
            return None, trace_checkpoint(checkpoint, inputs)
        module, fused = reparameterize(checkpoint.module, inputs)
        return None, replace(trace(module, inputs), passes=("reparameterize",) if fused else ())
    reduced = reduce(vit, schedule, target.policy.lowering, target.policy.explicit)
    return reduced, trace(reduced.module, inputs)

"""The demo's road: four bundles of the embedded model, measured side by side, as rows and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.bundle import Bundle
from edgevit.data import Dataset, read_dataset
from edgevit.progress import Progress
from edgevit.report_rows import Row

if TYPE_CHECKING:
    from PIL import Image

SCHEDULE = "tome:r=50/30@3,6"  # few and late merges, found by trying on the calibration scenes
TARGET = "openvino"  # one runtime for all rows, so that the differences are the methods'
ROUNDS = 6
PICTURES = 4


@dataclass(frozen=True)
class Variant:
    """One row of the demo's table."""

    name: str
    target: str
    reduce: str
    precision: str


VARIANTS = (
    Variant("dense-fp32", TARGET, "none", "fp32"),
    Variant("reduced-fp32", TARGET, SCHEDULE, "fp32"),
    Variant("int8", TARGET, "none", "int8"),
    Variant("reduced-int8", TARGET, SCHEDULE, "int8"),
)


@dataclass(frozen=True)
class Demo:
    """What the demo measured."""

    rows: tuple[Row, ...]
    page: Path
    profile: dict[str, Any]


def run(out: Path, progress: Progress) -> Demo:
    """Export, evaluate, measure, report into `out`. Raises EdgeVitError."""
    from edgevit.demo.scenes import write_images
    from edgevit.report import write_report

    out.mkdir(parents=True, exist_ok=True)
    progress("make images", 0, 0)
    calib, evaluation = write_images(out / "images")
    bundles = [_export(v, out, calib, progress) for v in VARIANTS]
    data = read_dataset(evaluation)
    rows, summary = measure(bundles, data, progress)
    progress("draw tokens", 0, 0)
    page = write_report(
        out / "report.html",
        "edgevit demo",
        rows,
        {"device": summary["device"], "conditions": summary["conditions"]},
        _pictures(data.head(PICTURES)),
        commands(),
        summary["notes"],
    )
    return Demo(tuple(rows), page, summary)


def _export(variant: Variant, out: Path, calib: Path, progress: Progress) -> Bundle:
    from edgevit.pipeline import ExportSettings, export

    settings = ExportSettings(
        model="demo",
        target=variant.target,
        out=out / variant.name,
        reduce=variant.reduce,
        precision=variant.precision,
        calib=calib,
        force=True,
    )
    return export(settings, lambda what, done, total: progress(f"{variant.name}: {what}", done, total)).bundle


def commands() -> list[str]:
    """The lines that reproduce the demo by hand."""
    data = "--calib images/calib.csv"
    lines = [
        f"edgevit export demo --target {v.target}"
        + (f" --reduce {v.reduce}" if v.reduce != "none" else "")
        + (f" --int8 {data}" if v.precision == "int8" else "")
        + f" -o {v.name}"
        for v in VARIANTS
    ]
    names = " ".join(v.name for v in VARIANTS[1:])
    first = VARIANTS[0].name
    return [
        *lines,
        f"edgevit eval {names} --data images/eval.csv --against {first}",
        f"edgevit profile {names} --against {first} --rounds {ROUNDS}",
    ]


def measure(bundles: Sequence[Bundle], data: Dataset, progress: Progress) -> tuple[list[Row], dict[str, Any]]:
    """Accuracy and latency of bundles beside the first one, on the same images and in one session."""
    from edgevit.devices.bench import BenchPlan, profile
    from edgevit.devices.result import record
    from edgevit.evaluate import compare, evaluate
    from edgevit.measure import job

    results = [evaluate(b, data, progress) for b in bundles]
    jobs = [job(b) for b in bundles]
    plan = BenchPlan(rounds=ROUNDS, min_seconds=0.5, min_samples=100, warmup_s=0.3)
    found = profile(jobs[1:], jobs[0], plan, lambda what, done, total: progress("measure latency", done, total))
    record(found, bundles[0].folder.parent)
    summary = found.to_json()
    latency = {row["bundle"]: row for row in summary["results"]}
    rows = []
    for bundle, result in zip(bundles, results, strict=True):
        against = compare(result, results[0])
        timing, speed = latency[bundle.name], summary["speedup"].get(bundle.name)
        manifest = bundle.manifest
        rows.append(
            Row(
                name=bundle.name,
                bundle=bundle.name,
                target=manifest["target"],
                precision=manifest["precision"],
                schedule=manifest["schedule"]["text"],
                top1=result.top1,
                top1_se=result.top1_se,
                images=result.images,
                agreement=against["agreement"],
                flips_lost=against["flips_lost"],
                flips_won=against["flips_won"],
                median_ms=timing["median_ms"],
                ci95_ms=tuple(timing["ci95_ms"]),
                speedup=speed["ratio"] if speed else 1.0,
                speedup_ci95=tuple(speed["ci95"]) if speed else None,
                size_bytes=bundle.size_bytes,
                macs=manifest["schedule"]["macs"]["reduced"],
            )
        )
    return rows, summary


def _pictures(data: Dataset) -> list[tuple[str, Image.Image]]:
    """Kept and merged tokens of a few images, one picture for each of the methods."""
    from edgevit.adapters import adapt
    from edgevit.load import load
    from edgevit.picture import contact, draw_file, legend
    from edgevit.reduce import reduce
    from edgevit.reduced_vit import ReducedVit
    from edgevit.tokens.schedule import parse_schedule

    checkpoint = load("demo")
    assert checkpoint.module is not None
    vit = adapt(checkpoint.module)
    pictures = []
    for spec in (SCHEDULE, "evit:keep=0.7"):
        module = reduce(vit, parse_schedule(spec)).module
        assert isinstance(module, ReducedVit)
        strips, caption = [], spec
        for file in data.files:
            strip, history = draw_file(file, checkpoint.preprocess, module, vit.grid)
            strips.append(strip)
            caption = f"{spec}. {legend(history)}"
        pictures.append((caption, contact(strips)))
    return pictures

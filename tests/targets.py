"""Every model on every target in every precision, dense and reduced: built and verified, or refused with its reason.

    python tests/targets.py ASSETS -o WORK                       writes docs/targets.md anew: hours
    python tests/targets.py ASSETS -o WORK --only ViT-Tiny ort   these cells alone, printed
    python tests/targets.py ASSETS -o WORK --onto                keeps the page's cells, builds others (`make targets`)
    python tests/targets.py ASSETS -o WORK --onto --as-is        and nothing is built

A cell is one `edgevit export` with 8 images: photographs, or faces for the face model. What the numeric check then
ran is the target's own `checked_by`. Models without real weights have random ones whose gains and statistics matter;
ranges of int8 are by squared error alone: where a Q/DQ stands does not depend on how its scale was found.
Each model and target has a process of its own; cells already in WORK/cells.jsonl are not built again.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also where PYTHONSAFEPATH keeps it off
from tests.pages import fill, standing

IMAGES = 8
PRECISIONS = ("fp32", "fp16", "int8")
LIMIT_S = 1800
NOT_RUN, ABSENT = "?", "–"


@dataclass(frozen=True)
class Model:
    """A row: real weights (a path inside ASSETS) or random ones of a timm architecture, and the schedule, if any."""

    source: str
    reduce: str | None = None
    size: int | None = None
    images: str = "imagenet_like/calib"


MODELS = {
    "ViT-Tiny": Model("vit_tiny/model.safetensors", "tome:r=45@4,8"),
    "DeiT-S": Model("timm:deit_small_patch16_224", "tome:r=45@4,8"),
    "DINOv2-S": Model("timm:vit_small_patch14_dinov2", "tome:r=60@4,8", 224),
    "SigLIP-B": Model("timm:vit_base_patch16_siglip_224", "tome:r=45@4,8"),
    "MobileViT-S": Model("timm:mobilevit_s", "tome:r=64@1"),
    "EfficientFormerV2-S0": Model("timm:efficientformerv2_s0"),
    "FastViT-T8": Model("timm:fastvit_t8"),
    "EfficientViT-B1": Model("timm:efficientvit_b1"),
    "EdgeFace-XS": Model("edgeface/xs.safetensors", images="faces"),
}


def weights(model: Model, name: str, assets: Path, work: Path) -> Path:
    """The model's file: the real one, or random weights written once."""
    if not model.source.startswith("timm:"):
        return assets / model.source
    path = work / "weights" / f"{name}.safetensors"
    if not path.exists():
        import timm
        import torch
        from safetensors.torch import save_file

        from tests.quant.hybrids import settle, spread

        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            module = timm.create_model(model.source[5:], **({"img_size": model.size} if model.size else {}))
            size = model.size or module.pretrained_cfg["input_size"][-1]
            spread(module)
            settle(module, torch.randn(4, 3, size, size))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path, {"arch": model.source})
    return path


def images(model: Model, assets: Path, work: Path) -> Path:
    """A CSV of the first images of a folder of ASSETS."""
    path = work / f"{model.images.replace('/', '-')}.csv"
    files = sorted(p for p in (assets / model.images).rglob("*") if p.suffix in (".jpg", ".png"))[:IMAGES]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *((f.resolve(), 0) for f in files)])
    return path


def quick(target: str) -> None:
    """In this process: int8 of a target without its searches and corrections."""
    from edgevit.runtimes import runtime

    def plain(scheme: Any) -> Any:
        return replace(scheme, ranges=("mse",), equalize=False, compensate=False, correct_bias=False)

    cls = type(runtime(target))
    schemes = {name: plain(scheme) for name, scheme in cls.policy.schemes.items()}
    cls.policy = replace(cls.policy, scheme=plain(cls.policy.scheme), schemes=schemes)


def cell(model: str, target: str, precision: str, schedule: str, assets: Path, work: Path) -> dict[str, Any]:
    """Export once; what came out of it."""
    from edgevit.errors import EdgeVitError
    from edgevit.pipeline import ExportSettings, export
    from edgevit.runtimes import runtime

    made = {"model": model, "target": target, "precision": precision, "schedule": schedule}
    if precision not in runtime(target).policy.precisions:
        return {**made, "refused": f"{target} has no {precision}"}
    settings = ExportSettings(
        model=str(weights(MODELS[model], model, assets, work)), target=target, out=work / "bundle", reduce=schedule,
        precision=precision, calib=images(MODELS[model], assets, work), force=True,
        input_size=(MODELS[model].size,) * 2 if MODELS[model].size else None,
    )  # fmt: skip
    started = time.perf_counter()
    try:
        bundle = export(settings).bundle
    except EdgeVitError as error:
        return {**made, "refused": str(error)}
    check = bundle.manifest["check"]
    kept = {key: check.get(key) for key in ("by", "relative_diff", "sqnr_db", "agreement", "program_diff")}
    found = {**made, "seconds": time.perf_counter() - started, "bytes": bundle.size_bytes, **kept}
    shutil.rmtree(bundle.folder)
    return found


def cells(names: list[str]) -> list[tuple[str, str, str, str]]:
    """Every (model, target, precision, schedule), or those of the named models and targets."""
    from edgevit.runtimes import TARGETS

    some_models = [m for m in MODELS if m in names] or list(MODELS)
    some_targets = [t for t in TARGETS if t in names] or list(TARGETS)
    return [
        (model, target, precision, schedule)
        for model, target in product(some_models, some_targets)
        for schedule in ("none", MODELS[model].reduce)
        if schedule
        for precision in PRECISIONS
    ]


def key(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """What makes a cell that cell."""
    return row["model"], row["target"], row["precision"], row["schedule"]


def read(work: Path) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """The cells that are there; of two of the same, the later one."""
    path = work / "cells.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {key(row): row for row in rows}


def on_page() -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """The cells of the table that stands in docs/targets.md, each as the text it has there."""
    head, *lines = standing("targets.md", "make targets").splitlines()
    notes = [line.split(". ", 1)[1] for line in lines if re.match(r"\d+\. ", line)]
    _, _, *targets = (name.strip() for name in head.strip("|").split("|"))
    rows = []
    for line in (line for line in lines if line.startswith("| ")):
        model, schedule, *found = (text.strip() for text in line.strip("|").split("|"))
        for target, texts in zip(targets, found, strict=True):
            for precision, text in zip(PRECISIONS, texts.split(" / "), strict=True):
                made = {"model": model, "target": target, "precision": precision, "schedule": schedule.strip("`")}
                if text == ABSENT:
                    rows.append({**made, "refused": f"{target} has no {precision}"})
                elif text.startswith("["):
                    rows.append({**made, "refused": notes[int(text.strip("[]")) - 1]})
                elif text != NOT_RUN:
                    rows.append({**made, "by": "as the page says", "text": text})
    return {key(row): row for row in rows}


def build(wanted: list[tuple[str, str, str, str]], assets: Path, work: Path) -> None:
    """Build what is not there yet, a process a model and target; one that dies costs its own cell."""
    for pair in dict.fromkeys((model, target) for model, target, _, _ in wanted):
        while missing := [c for c in wanted if c[:2] == pair and c not in read(work)]:
            command = [sys.executable, __file__, str(assets), "-o", str(work), "--cells", json.dumps(missing)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
                why = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
            except subprocess.TimeoutExpired:
                why = [f"not done in {LIMIT_S} s"]
            left = [c for c in missing if c not in read(work)]
            if left:
                names = ("model", "target", "precision", "schedule")
                write(work, {**dict(zip(names, left[0], strict=True)), "broken": why[0]})
            print(*pair, f"{len(missing) - max(len(left) - 1, 0)} cells", file=sys.stderr, flush=True)


def write(work: Path, row: dict[str, Any]) -> None:
    """Add a cell."""
    with (work / "cells.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def shown(row: dict[str, Any], notes: list[str]) -> str:
    """A cell's text; a refusal is the number of its note."""
    if "text" in row:
        return str(row["text"])
    if "by" in row:
        return f"{row['relative_diff']:.0e}" if row["precision"] == "fp32" else f"{row['sqnr_db']:.0f} dB"
    text = row.get("refused") or f"BROKEN: {row['broken']}"
    if text == f"{row['target']} has no {row['precision']}":
        return ABSENT
    if text not in notes:
        notes.append(text)
    return f"[{notes.index(text) + 1}]"


def table(rows: dict[tuple[str, str, str, str], dict[str, Any]]) -> str:
    """A row a model and schedule, a column a target: fp32 / fp16 / int8; then totals and the refusals."""
    targets = list(dict.fromkeys(target for _, target, _, _ in rows))
    notes: list[str] = []
    lines = [f"| model | schedule | {' | '.join(targets)} |", "|---|---|" + "---|" * len(targets)]
    names = list(dict.fromkeys((m, s) for m, _, _, s in rows))
    for model, schedule in names:
        texts = []
        for target in targets:
            found = [rows.get((model, target, precision, schedule)) for precision in PRECISIONS]
            texts.append(" / ".join(shown(row, notes) if row else NOT_RUN for row in found))
        lines.append(f"| {model} | `{schedule}` | {' | '.join(texts)} |")
    count = Counter(
        "built" if "by" in r else "absent" if "has no" in r.get("refused", "") else "not" for r in rows.values()
    )
    tried = count["built"] + count["not"]
    total = f"{count['built']} of {tried} cells built and verified ({100 * count['built'] / max(tried, 1):.1f} %)"
    missing = len(names) * len(targets) * len(PRECISIONS) - len(rows)
    lines += ["", f"{total}; {missing} cells (`{NOT_RUN}`) were not tried." if missing else f"{total}."]
    lines += ["", *(f"{i}. {text}" for i, text in enumerate(notes, 1))] if notes else []
    return "\n".join(lines)


def main() -> None:
    """Build the cells, and write the page or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("assets", type=Path)
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="models and targets")
    parser.add_argument("--as-is", action="store_true", help="build nothing")
    parser.add_argument("--onto", action="store_true", help="keep the page's cells, build those that it lacks")
    parser.add_argument("--cells", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.cells:
        for wanted in json.loads(arguments.cells):
            quick(wanted[1])
            write(arguments.work, cell(*wanted, arguments.assets, arguments.work))
        return
    wanted = cells(arguments.only)
    before = on_page() if arguments.onto else {}
    if not arguments.as_is:
        build([c for c in wanted if c not in before], arguments.assets.resolve(), arguments.work.resolve())
    have = before | read(arguments.work)
    some = [] if arguments.onto else arguments.only
    text = table({c: have[c] for c in cells(some) if c in have})
    if some:
        print(text)
    else:
        fill("targets.md", "make targets", text)


if __name__ == "__main__":
    main()

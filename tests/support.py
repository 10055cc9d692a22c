"""Every reduction method on every model family: exported and verified, or refused with its reason.

    python tests/support.py            writes docs/support.md (`make support`)
    python tests/support.py tome evit  checks these methods and prints what is not as the document says

A cell is verified when the reduced model of random weights traces to static shapes, and ONNX Runtime with batch 4
agrees with eager, which takes the images one by one, within 1e-4 of the largest output on 8 images: so batch 1 and
batch 4 agree too. ONNX Runtime with batch 1 is compared on the families of ALSO_ONE.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "support.md"
IMAGES, BATCH, TOLERANCE = 8, 4, 1e-4
VERIFIED, FAILED = "yes", "FAILED:"
ALSO_ONE = ("ViT / DeiT / AugReg (class token)", "Swin", "DynamicViT", "DTEM")

SPECS = {  # what a generic `keep=0.7` at the method's own blocks does not say
    "expedit": "expedit:keep=0.5@1",
    "stvit": "stvit:semantic=2",
    "lookupvit": "lookupvit:compressed=2",
}


@dataclass(frozen=True)
class Cell:
    """One method on one family: no reason means exported and verified."""

    family: str
    method: str
    reason: str = ""


BEYOND = {  # exports, and is not near enough to eager to be called verified
    ("transformers CLIP vision (token outputs)", "expedit"): (
        "exports, but ONNX Runtime differs from eager by 1.8e-4 of the largest output, and 1e-4 is the limit"
    ),
}
LIKE_ANOTHER = {  # the same adapter and the same decisions as a row of the page; tests/adapters runs them
    "transformers ViT (classifier)", "transformers DINOv2 (classifier)", "transformers SigLIP (classifier)",
    "transformers CLIP vision (image embedding)", "transformers DINOv2 with registers (token outputs)",
    "ViT (post-norm)", "ViT (parallel blocks, 'three things')", "ViT (parallel blocks, ViT-22B)", "Perception Encoder",
    "ViT with learned rotary positions", "Sapiens2 (grouped queries)", "BEiT (shared bias, class token)", "EVA",
    "ViT with relative positions", "ViT with relative positions (class token)", "PiT distilled", "LeViT distilled",
    "LeViT conv", "Swin V2",
}  # fmt: skip


def families() -> dict[str, Callable[[], object]]:
    """Builders of tiny random models, by the name a reader knows; `tests/adapters/families_*.py`."""
    found: dict[str, Callable[[], object]] = {}
    for path in sorted((ROOT / "tests" / "adapters").glob("families_*.py")):
        found |= runpy.run_path(str(path))["FAMILIES"]
    return {name: build for name, build in found.items() if name not in LIKE_ANOTHER}


def spec(name: str, stages: int) -> str:
    """A schedule that reduces a model of three blocks and sixteen patches."""
    if name == "expedit" and stages == 1:
        return "expedit:keep=0.5,until=2@1"
    # one block of staged models: near-ties of hundreds of windows are decided by the last bit of a sum
    return SPECS.get(name, f"{name}:keep=0.7{'@1' if stages > 1 else ''}")


def row(family: str, methods: tuple[str, ...], export: bool = True) -> list[Cell]:
    """All methods on one family."""
    import torch

    from edgevit.adapters import adapt
    from edgevit.errors import EdgeVitError, UnsupportedModel
    from edgevit.reduce import reduce
    from edgevit.tokens.schedule import parse_schedule

    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        vit = adapt(families()[family]())
    except UnsupportedModel as error:
        return [Cell(family, name, str(error)) for name in methods]
    cells = []
    for name in methods:
        if (family, name) in BEYOND:
            cells.append(Cell(family, name, BEYOND[family, name]))
            continue
        try:
            reduced = reduce(vit, parse_schedule(spec(name, len(vit.stages))))
        except EdgeVitError as error:
            cells.append(Cell(family, name, str(error)))
            continue
        if reduced.module is vit.module:
            raise AssertionError(f"{name} reduces nothing on {family}: {reduced.tokens}")
        if export:
            batches = (1, BATCH) if family in ALSO_ONE else (BATCH,)
            try:
                verify(reduced.module, vit.image_size, batches, f"{name} on {family}")
            except (AssertionError, EdgeVitError) as error:
                cells.append(Cell(family, name, f"{FAILED} {error}"))
                continue
        cells.append(Cell(family, name))
    return cells


def verify(module, size: tuple[int, int], batches: tuple[int, ...], what: str) -> None:
    """Raises AssertionError or GraphError where a promise of the matrix does not hold."""
    import numpy as np
    import torch

    from edgevit.export.to_onnx import to_onnx
    from edgevit.export.trace import trace
    from edgevit.runtimes.ort import import_ort
    from edgevit.stages import InputSpec

    images = torch.rand(IMAGES, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        want = torch.cat([module(image[None]) for image in images]).numpy()
    for batch in batches:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            to_onnx(trace(module, InputSpec(batch, *size)), path)
            options = import_ort().SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            session = import_ort().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            got = np.concatenate([session.run(None, {"images": part.numpy()})[0] for part in images.split(batch)])
        error = float(np.abs(got - want).max() / np.abs(want).max())
        assert got.shape == want.shape, f"{what}: batch {batch} gives {got.shape}, eager {want.shape}"
        assert error <= TOLERANCE, f"{what}: batch {batch} differs from eager by {error:.1e}"


def document(cells: list[Cell]) -> str:
    """The page: one row a family, one column a method, reasons as numbered notes."""
    methods = list(dict.fromkeys(cell.method for cell in cells))
    names = list(dict.fromkeys(cell.family for cell in cells))
    table = {(cell.family, cell.method): cell.reason for cell in cells}
    notes: dict[str, int] = {}
    rows = []
    for name in names:
        marks = []
        for method in methods:
            reason = table[name, method]
            marks.append(f"[{notes.setdefault(reason, len(notes) + 1)}]" if reason else VERIFIED)
        rows.append(f"| {name} | " + " | ".join(marks) + " |")
    verified = sum(not cell.reason for cell in cells)
    return "\n".join(
        [
            "# Which method runs on which model family",
            "",
            "Made by `make support`; a test keeps it true.",
            "",
            f"`{VERIFIED}`: exported and verified on a small model of random weights: static shapes, no forbidden",
            f"operator, ONNX Runtime at batch {BATCH} within 1e-4 of eager at batch 1 on {IMAGES} images.",
            f"ONNX Runtime at batch 1 is compared on: {', '.join(ALSO_ONE)}.",
            "A number: refused, for the reason with that number below.",
            "",
            f"{len(names)} families, {len(methods)} methods: {verified} combinations verified, "
            f"{len(cells) - verified} refused.",
            "",
            "| | " + " | ".join(methods) + " |",
            "|---|" + "---|" * len(methods),
            *rows,
            "",
            "## Reasons",
            "",
            *(f"{number}. {reason}" for reason, number in notes.items()),
            "",
        ]
    )


def recorded() -> Iterator[Cell]:
    """The cells as the document has them."""
    lines = DOCUMENT.read_text().splitlines()
    reasons = dict(line.split(". ", 1) for line in lines if line[:1].isdigit() and ". " in line)
    head = next(line for line in lines if line.startswith("| | "))
    methods = [part.strip() for part in head.strip("|").split("|")][1:]
    for line in lines[lines.index(head) + 2 :]:
        if not line.startswith("| "):
            return
        name, *marks = [part.strip() for part in line.strip("|").split("|")]
        for method, mark in zip(methods, marks, strict=True):
            yield Cell(name, method, "" if mark == VERIFIED else reasons[mark.strip("[]")])


def main(only: list[str]) -> int:
    """Check everything, in two processes."""
    from edgevit.tokens import METHODS

    methods = tuple(only or METHODS)
    names = list(families())
    cells: list[Cell] = []
    with ProcessPoolExecutor(2) as pool:
        for done, part in enumerate(pool.map(row, names, [methods] * len(names)), start=1):
            cells += part
            print(f"{done}/{len(names)} {part[0].family}: {sum(not c.reason for c in part)} verified", file=sys.stderr)
    if only:
        known = set(recorded())
        wrong = [cell for cell in cells if cell not in known]
        print("\n".join(map(str, wrong)) or "as recorded")
        return bool(wrong)
    failed = [f"{cell.method} on {cell.family}: {cell.reason}" for cell in cells if cell.reason.startswith(FAILED)]
    if failed:
        print("\n".join(failed), file=sys.stderr)
        return 1
    part = DOCUMENT.with_suffix(".part")
    part.write_text(document(cells))
    part.replace(DOCUMENT)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

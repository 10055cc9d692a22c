"""Every hybrid family in float32 and int8: regions, what is kept float and why, output SQNR, sizes, latency ratios.

    python benchmarks/hybrid_table.py -o DIR                     export all and compare, with the table
    python benchmarks/hybrid_table.py -o DIR --latency           measure too, on an idle machine

Weights are random, with settled batch norms (`tests/quant/hybrids.py`), so the SQNR says what rounding does to a
network of this form, and nothing of a trained one. Inputs are of the architecture's own size, and the images judged are
not those calibrated on. Speed is float32 / int8 of one runtime, every round in a fresh process, A B B A. Work
already in DIR is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where PYTHONSAFEPATH keeps it off
from benchmarks.hybrids import sqnr
from tests.quant.hybrids import CLASSES, HYBRIDS, build, draw

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from edgevit.bundle import Bundle

TARGETS = ("ort", "openvino")
CALIBRATION, JUDGED = 16, 16  # images
SIDE = 256
PREPROCESS = {"resize": "squash", "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
SHORT = {  # what the regions are called in the table
    "conv-stage": "conv", "transformer": "attn", "transformer-residual": "residual", "attention-core": "core",
}  # fmt: skip

REASONS = {  # why something is kept float, in the table's words; an activation by its own name
    "elementwise arithmetic stays float": "arithmetic",
    "residual stream stays float: one scale for all its channels ruins accuracy": "residual",
    "in 8 bits this target is no faster here": "no faster",
    "product of two activations stays float": "products",
    "an activation function costs nothing in float here": "activation",
    "normalization has no integer kernel, and its statistics need range": "norm",
    "normalization stays float": "norm",
    "softmax stays float: 8 bits lose its tail": "softmax",
    "pooling stays float": "pooling",
    "this version has no 8-bit form of it": "no form yet",
    "attention core: softmax and its two products stay float": "core",
    "a gate stays float": "gate",
    "it reads a constant, so engines compute it once, when they load": "constant",
}
NO_KERNEL = " has no integer kernel"


def pixels(out: Path) -> tuple[Path, Path]:
    """CSV files of the images that are calibrated on, and of those that are judged on."""
    from PIL import Image

    found = []
    for name, count, seed in (("calib", CALIBRATION, 1), ("eval", JUDGED, 2)):
        found.append(out / f"{name}.csv")
        if found[-1].exists():
            continue
        (out / name).mkdir(parents=True, exist_ok=True)
        images = (draw("levit", count, seed, SIDE) * 64 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        for index, image in enumerate(images):
            Image.fromarray(image).save(out / name / f"{index:02d}.png")
        with found[-1].open("w", newline="") as file:
            csv.writer(file).writerows([("file", "label"), *((f"{name}/{i:02d}.png", 0) for i in range(count))])
    return found[0], found[1]


def weights(name: str, out: Path) -> tuple[Path, tuple[int, int] | None]:
    """The model's file, and the input size that its constructor must be told."""
    from safetensors.torch import save_file
    from timm.models import get_pretrained_cfg

    hybrid = HYBRIDS[name]
    side = get_pretrained_cfg(hybrid.arch).input_size[-1]
    path = out / "model.safetensors"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        metadata = {"arch": f"timm:{hybrid.arch}", "num_classes": str(CLASSES)}
        metadata["preprocess"] = json.dumps({**PREPROCESS, "size": [side, side]})
        save_file(build(name, side).state_dict(), path, metadata)
    return path, (side, side) if hybrid.sized else None


def bundles(name: str, target: str, calib: Path, out: Path) -> tuple[Bundle, Bundle]:
    """The float32 and the int8 bundle of one target."""
    from edgevit.bundle import Bundle
    from edgevit.pipeline import ExportSettings, export

    model, size = weights(name, out)
    found = []
    for precision in ("fp32", "int8"):
        place = out / f"{target}-{precision}"
        if not place.exists():
            export(ExportSettings(model=str(model), target=target, precision=precision, out=place, calib=calib,
                                  input_size=size))  # fmt: skip
        found.append(Bundle.load(place))
    return found[0], found[1]


def outputs(bundle: Bundle, images: Path) -> np.ndarray:
    """`[images, ...]`, of every image."""
    import numpy as np

    from edgevit.data import read_dataset
    from edgevit.runtimes import runtime

    session = runtime(bundle.manifest["target"]).open(bundle.engine)
    return np.concatenate([session.run(image) for image in read_dataset(images).tensors(bundle.preprocess, 1)])


def weight_of(bundle: Bundle) -> int:
    """Bytes of the engine's files."""
    return sum((bundle.engine.folder / file).stat().st_size for file in bundle.engine.files)


def kept(bundle: Bundle) -> dict[str, int]:
    """Reason → how many layers and operators stay float for it."""
    return dict(Counter(refusal["reason"] for refusal in bundle.manifest["kept_float"]).most_common())


def layers(name: str, out: Path) -> dict[str, int]:
    """Region → how many Linears and convolutions."""
    from edgevit.export.trace import trace
    from edgevit.load import load
    from edgevit.quant.costs import summary
    from edgevit.reparameterize import reparameterize
    from edgevit.stages import InputSpec

    model, size = weights(name, out)
    checkpoint = load(str(model), input_size=size)
    assert checkpoint.module is not None
    spec = InputSpec(1, *checkpoint.preprocess.size)
    graph = trace(reparameterize(checkpoint.module, spec)[0], spec)
    found = summary(graph.program.module())["summary"]
    return {region: row["layers"] for region, row in found.items() if row["layers"]}


def speedup(pair: tuple[Bundle, Bundle], rounds: int) -> dict[str, Any]:
    """float32 / int8 and its interval."""
    from edgevit.devices.bench import BenchPlan, profile
    from edgevit.measure import job

    plan = BenchPlan(rounds=rounds, warmup_s=0.2, min_seconds=0.4, min_samples=8)
    found: dict[str, Any] = profile([job(pair[1], "int8")], job(pair[0], "fp32"), plan).to_json()["speedup"]["int8"]
    return found


def filled(row: dict[str, Any], name: str, out: Path, rounds: int) -> Iterator[None]:
    """Work out what a row lacks; a pause after each piece. rounds: of the latency, 0 leaves it out."""
    from edgevit.errors import EdgeVitError

    calib, judged = pixels(out)
    if "regions" not in row:
        row["regions"] = layers(name, out / name)
        yield
    for target in TARGETS:
        cell = row.setdefault(target, {})
        if "refused" in cell or ("sqnr" in cell and ("speedup" in cell or not rounds)):
            continue
        try:
            pair = bundles(name, target, calib, out / name)
        except EdgeVitError as error:
            cell["refused"] = str(error)
            yield
            continue
        if "sqnr" not in cell:
            cell |= {"sqnr": sqnr(outputs(pair[0], judged), outputs(pair[1], judged)), "kept": kept(pair[1])}
            cell |= {"precision": pair[1].engine.precision, "size": weight_of(pair[1]) / weight_of(pair[0])}
            yield
        if rounds:
            cell["speedup"] = speedup(pair, rounds)
            yield


def cells(name: str, row: dict[str, Any]) -> Iterator[str]:
    """One row of the table."""
    yield name
    yield ", ".join(f"{SHORT.get(region, region)} {count}" for region, count in row["regions"].items())
    for target in TARGETS:
        cell = row[target]
        if "refused" in cell:
            yield from (f"refused: {cell['refused']}", "–", "–")
            continue
        yield f"{cell['sqnr']:.0f}"
        yield f"{cell['size']:.2f}"
        ratio = cell.get("speedup")
        yield f"{ratio['ratio']:.2f} ({ratio['ci95'][0]:.2f} to {ratio['ci95'][1]:.2f})" if ratio else "–"


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A row a family, twice: figures, and what stays float."""
    titles = [f"{target} {figure}" for target in TARGETS for figure in ("SQNR, dB", "size", "speed")]
    yield f"| | layers | {' | '.join(titles)} |"
    yield "|---|---|" + "--:|--:|---|" * len(TARGETS)
    for name, row in found.items():
        yield f"| {' | '.join(cells(name, row))} |"
    yield ""
    yield f"| kept float | {' | '.join(TARGETS)} |"
    yield "|---|" + "---|" * len(TARGETS)
    for name, row in found.items():
        yield f"| {name} | {' | '.join(why(row[target]) for target in TARGETS)} |"


def why(cell: dict[str, Any]) -> str:
    """What a bundle keeps float: reason and count, the most frequent first."""
    found: Counter[str] = Counter()
    for reason, count in cell.get("kept", {}).items():
        found[REASONS.get(reason, reason.removesuffix(NO_KERNEL))] += count
    return ", ".join(f"{reason} {count}" for reason, count in found.most_common())


def main() -> None:
    """Fill and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=list(HYBRIDS), metavar="FAMILY", default=list(HYBRIDS))
    parser.add_argument("--latency", action="store_true", help="measure too; nothing else may run")
    parser.add_argument("--rounds", type=int, default=4, help="fresh processes of each engine")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "hybrid_table.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in arguments.models:
        for _ in filled(found.setdefault(name, {}), name, arguments.out, arguments.rounds * arguments.latency):
            path.write_text(json.dumps(found, indent=1))
            print(name, found[name], file=sys.stderr)
    for line in table({name: found[name] for name in arguments.models}):
        print(line)


if __name__ == "__main__":
    main()

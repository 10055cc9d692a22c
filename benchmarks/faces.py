"""EdgeFace (EdgeNeXt) on the ORL faces: rank-1 and pair AUC in float32, by other tools as they come, and by edgevit.

    python benchmarks/faces.py --weights DIR_OF_SAFETENSORS --faces DIR_OF_s1_TO_s40 -o OUT
    python benchmarks/faces.py ... --scheme 'plain={"equalize": false, "correct_bias": false}' --scheme 'edgevit={}'

An image is padded to a square by repeating its edge. One image of each person is the gallery, all others are probes;
the mean over the ten choices is rank-1. The AUC is over all pairs, same person against different, by cosine similarity.
Every tool calibrates on the same images: those of the first `--people` persons (labels are not read).
A scheme is a name and the fields of `edgevit.quant.scheme.QuantScheme` that differ from the target's own; each gives
one row of the program run by PyTorch (its Q/DQ computed in float) and one of each engine. Work already in OUT is not
repeated. Results: a table, and OUT/faces.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH keeps it off
from peers import NNCF, NO_NNCF, float_engine, has_nncf, nncf, ort_static

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from edgevit.preprocess import Preprocess
    from edgevit.quant.scheme import QuantScheme
    from edgevit.stages import Engine, QuantizedGraph

    Run = Callable[[np.ndarray], np.ndarray]

TARGETS = ("ort", "openvino")
PEERS = ("NNCF default", "NNCF TRANSFORMER")


def read_faces(folder: Path, preprocess: Preprocess) -> tuple[list[np.ndarray], np.ndarray]:
    """Images `[1, 3, H, W]` of person after person, and who they are."""
    import numpy as np
    from PIL import Image

    from edgevit.data import open_image

    people = sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda p: int(p.name[1:]))
    images, who = [], []
    for number, person in enumerate(people):
        for file in sorted(person.glob("*.png"), key=lambda p: int(p.stem)):
            pixels = np.asarray(open_image(file).convert("L"))
            short, long = sorted(pixels.shape)
            before = (long - short) // 2
            both = (before, long - short - before)
            pixels = np.pad(pixels, [both if side == short else (0, 0) for side in pixels.shape], mode="edge")
            images.append(preprocess.tensor(Image.fromarray(pixels))[None])
            who.append(number)
    return images, np.array(who)


def scores(embeddings: np.ndarray, who: np.ndarray) -> dict[str, float]:
    """Rank-1 in percent, and the area under the ROC curve of pairs."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similar = unit @ unit.T
    each = np.bincount(who).min()  # images a person
    place = np.concatenate([np.arange(n) for n in np.bincount(who)])
    hits = []
    for choice in range(each):
        gallery, probes = np.flatnonzero(place == choice), np.flatnonzero(place != choice)
        nearest = gallery[similar[np.ix_(probes, gallery)].argmax(1)]
        hits.append((who[nearest] == who[probes]).mean())
    left, right = np.triu_indices(len(who), 1)
    auc = roc_auc_score(who[left] == who[right], similar[left, right])
    return {"rank1": 100 * float(np.mean(hits)), "auc": float(auc)}


def in_torch(module: nn.Module) -> Run:
    """An eager module or a program's module as a function of arrays."""
    import torch

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run


def in_runtime(engine: Engine) -> Run:
    """A built engine, on one thread."""
    from edgevit.runtimes import runtime

    return runtime(engine.runtime).open(engine, threads=1).run


def quantized_program(
    module: nn.Module, calibration: Sequence[np.ndarray], scheme: QuantScheme, target: str
) -> QuantizedGraph:
    """The program that a target would get, with explicit Q/DQ: `graph.program.module()` runs it in PyTorch."""
    from edgevit.export.trace import trace
    from edgevit.quant.apply import quantize
    from edgevit.runtimes import runtime
    from edgevit.stages import InputSpec

    graph = trace(module, InputSpec(1, *calibration[0].shape[2:]))
    return quantize(graph, scheme, runtime(target).policy.rewrites, iter(calibration), len(calibration))


def peers(module: nn.Module, calibration: Sequence[np.ndarray], folder: Path) -> dict[str, Callable[[], Run]]:
    """Row → how to get the other tools' engines."""
    from edgevit.stages import InputSpec

    inputs = InputSpec(1, *calibration[0].shape[2:])

    def built(target: str, quantize: Callable[[Engine, Path], Engine]) -> Run:
        before, after = folder / f"{target}-float", folder / f"{target}-int8"
        for place in (before, after):
            place.mkdir(exist_ok=True)
        return in_runtime(quantize(float_engine(module, inputs, target, before), after))

    found = {"ORT static default": lambda: built("ort", lambda e, f: ort_static(e, f, calibration))}
    if has_nncf():
        for name in PEERS:
            found[name] = lambda name=name: built("openvino", lambda e, f: nncf(e, f, calibration, **NNCF[name]))
    return found


def ours(
    module: nn.Module, calibration: Sequence[np.ndarray], name: str, fields: dict[str, Any], folder: Path
) -> dict[str, Callable[[], Run]]:
    """Rows of one scheme: the program in PyTorch, and the engines."""
    from edgevit.runtimes import runtime

    def graph(target: str, precision: str = "int8") -> QuantizedGraph:
        scheme = runtime(target).policy.quantizes(precision)
        assert scheme is not None
        return quantized_program(module, calibration, replace(scheme, **fields), target)

    def engine(target: str) -> Run:
        found = runtime(target)
        precision = found.resolve("int8").replace("bf16", "fp32")  # what is not int8 is float32 in every engine
        return in_runtime(found.build(graph(target, precision), folder, precision))

    rows: dict[str, Callable[[], Run]] = {f"{name}, PyTorch": lambda: in_torch(graph("ort").program.module())}
    return rows | {f"{name}, {target}": lambda target=target: engine(target) for target in TARGETS}


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME={"field": value}` → its two halves; lists become tuples, as a frozen scheme holds them."""
    name, _, fields = text.partition("=")
    values = json.loads(fields or "{}")
    return name, {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def main() -> None:
    """One model after the other, every row from the same images."""
    import numpy as np

    from edgevit.errors import EdgeVitError
    from edgevit.load import load

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder of NAME.safetensors")
    parser.add_argument("--faces", type=Path, required=True, help="folder of s1/1.png to s40/10.png")
    parser.add_argument("--people", type=int, default=10, help="calibrate on the images of the first N persons")
    parser.add_argument("--scheme", type=parsed, action="append", metavar="NAME={FIELDS}")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    if not has_nncf():
        print(NO_NNCF, file=sys.stderr)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "faces.json"
    found: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text()) if path.exists() else {}
    models = sorted(arguments.weights.glob("*.safetensors"))
    for weights in models:
        checkpoint = load(str(weights))
        assert checkpoint.module is not None
        images, who = read_faces(arguments.faces, checkpoint.preprocess)
        calibration = [image for image, person in zip(images, who, strict=True) if person < arguments.people]
        with tempfile.TemporaryDirectory() as scratch:
            rows = {"fp32": lambda module=checkpoint.module: in_torch(module)}
            rows |= peers(checkpoint.module, calibration, Path(scratch))
            for name, fields in arguments.scheme or [("edgevit", {})]:
                rows |= ours(checkpoint.module, calibration, name, fields, Path(scratch))
            for row, make in rows.items():
                done = found.setdefault(row, {})
                if weights.stem in done:
                    continue
                try:
                    run = make()
                except EdgeVitError as error:
                    print(f"{weights.stem}, {row}: {error}", file=sys.stderr)
                    continue
                done[weights.stem] = scores(np.concatenate([run(image) for image in images]), who)
                path.write_text(json.dumps(found, indent=1))
                print(weights.stem, row, done[weights.stem], file=sys.stderr)
    print(f"rank-1 in percent / pair AUC; calibrated on the images of {arguments.people} persons\n")
    print(f"| | {' | '.join(w.stem for w in models)} |\n|---{'|--:' * len(models)}|")
    for row, done in found.items():
        cells = [f"{done[w.stem]['rank1']:.1f} / {done[w.stem]['auc']:.3f}" if w.stem in done else "–" for w in models]
        print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

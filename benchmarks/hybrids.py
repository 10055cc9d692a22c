"""Top-1 of small hybrid classifiers in float32, quantized by other tools as they come, and quantized by edgevit.

    python benchmarks/train_hybrids.py -o WEIGHTS
    python benchmarks/hybrids.py --weights WEIGHTS --data WEIGHTS -o OUT

Every tool calibrates on DATA/calib.csv and is judged on DATA/eval.csv. ONNX Runtime's and NNCF's quantizers start from
the float engines that edgevit built; all OpenVINO engines run with the same options. "min-max everywhere" is the
program run by PyTorch with every weight and every value in 8 bits. Work already in OUT is not repeated. Results: a
table, and OUT/hybrids.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH keeps it off
from peers import NNCF, NO_NNCF, has_nncf, min_max_everywhere, nncf_bundle, ort_static, rebuilt

if TYPE_CHECKING:
    import numpy as np

    from edgevit.bundle import Bundle
    from edgevit.evaluate import Evaluation

    Run = Callable[[np.ndarray], np.ndarray]

FLOAT, NAIVE, ORT_STATIC = "fp32", "min-max everywhere", "ORT static default"
PEERS = ("NNCF default", "NNCF TRANSFORMER")
OURS = {"edgevit ort": "ort", "edgevit openvino": "openvino"}
COLUMNS = (FLOAT, NAIVE, ORT_STATIC, *PEERS, *OURS)


def columns(weights: Path, data: Path, out: Path) -> tuple[dict[str, Callable[[], Run]], list[np.ndarray]]:
    """Column → how to get what it computes, which raises EdgeVitError where a bundle is refused; the images judged."""
    from edgevit.bundle import Bundle
    from edgevit.data import read_dataset
    from edgevit.load import load, read_safetensors
    from edgevit.pipeline import ExportSettings, export
    from edgevit.reparameterize import reparameterize
    from edgevit.runtimes import runtime
    from edgevit.stages import InputSpec

    calib = data / "calib.csv"
    side = read_safetensors(weights)[1].get("input_size")
    size = (int(side), int(side)) if side else None
    checkpoint = load(str(weights), input_size=size)
    assert checkpoint.module is not None
    spec = InputSpec(1, *checkpoint.preprocess.size)
    images, test = (list(read_dataset(d).tensors(checkpoint.preprocess, 1)) for d in (calib, data / "eval.csv"))

    def ours(target: str, precision: str) -> Bundle:
        place = out / f"{target}-{precision}"
        if place.exists():
            return Bundle.load(place)
        return export(ExportSettings(model=str(weights), target=target, precision=precision, out=place, calib=calib,
                                     input_size=size)).bundle  # fmt: skip

    def static() -> Bundle:
        source = ours("ort", "fp32")
        return rebuilt(source, out / "ort-static", lambda folder: ort_static(source.engine, folder, images))

    def peer(column: str) -> Bundle:
        place = out / column.lower().replace(" ", "-")
        return nncf_bundle(ours("openvino", "int8"), place, checkpoint.module, images, **NNCF[column])

    def opened(bundle: Bundle) -> Run:
        return runtime(bundle.manifest["target"]).open(bundle.engine).run

    makers = {
        FLOAT: lambda: opened(ours("ort", "fp32")),
        NAIVE: lambda: min_max_everywhere(reparameterize(checkpoint.module, spec)[0], spec, images),
        ORT_STATIC: lambda: opened(static()),
        **{column: lambda column=column: opened(peer(column)) for column in PEERS if has_nncf()},
        **{column: lambda target=target: opened(ours(target, "int8")) for column, target in OURS.items()},
    }
    return makers, test


def outputs(run: Run, images: Sequence[np.ndarray]) -> np.ndarray:
    """`[images, classes]`."""
    import numpy as np

    return np.concatenate([run(image) for image in images])


def judged(name: str, outputs: np.ndarray, labels: Sequence[int]) -> Evaluation:
    """What `edgevit eval` says of outputs `[images, classes]`; NaN is wrong."""
    import numpy as np

    from edgevit.evaluate import Evaluation, rank

    def place(scores: np.ndarray, label: int) -> int:
        return rank(scores, label) if np.isfinite(scores).all() else len(scores)

    ranks = [place(scores, label) for scores, label in zip(outputs, labels, strict=True)]
    return Evaluation(name, tuple(outputs.argmax(1).tolist()), tuple(ranks), 0.0)


def sqnr(exact: np.ndarray, got: np.ndarray) -> float:
    """Signal to quantization noise of the outputs in dB, which still tells tools apart where top-1 does not."""
    import numpy as np

    return float(10 * np.log10((exact**2).mean() / max(((got - exact) ** 2).mean(), 1e-20)))


def main() -> None:
    """Export, quantize and evaluate one model after the other."""
    from edgevit.data import read_dataset
    from edgevit.errors import EdgeVitError
    from edgevit.evaluate import compare

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder of NAME.safetensors")
    parser.add_argument("--data", type=Path, required=True, help="folder of calib.csv and eval.csv")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    if not has_nncf():
        print(NO_NNCF, file=sys.stderr)
    labels = read_dataset(arguments.data / "eval.csv").labels
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "hybrids.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for weights in sorted(arguments.weights.glob("*.safetensors")):
        rows = found.setdefault(weights.stem, {})
        makers, images = columns(weights, arguments.data, arguments.out / weights.stem)
        exact = None
        for column in [column for column in makers if column not in rows]:
            if exact is None:
                exact = outputs(makers[FLOAT](), images)
            try:
                got = outputs(makers[column](), images)
            except EdgeVitError as error:
                print(f"{weights.stem}, {column}: {error}", file=sys.stderr)
                continue
            result, base = judged(column, got, labels), judged(FLOAT, exact, labels)
            paired = compare(result, base)
            rows[column] = {"top1": result.top1, **{k: paired[k] for k in ("agreement", "flips_lost", "flips_won")}}
            rows[column]["sqnr"] = sqnr(exact, got)
            path.write_text(json.dumps(found, indent=1))
            print(weights.stem, column, rows[column], file=sys.stderr)
    print(f"top-1 on {len(labels)} images in percent, and the outputs' SQNR against fp32 in dB\n")
    print(f"| model | {' | '.join(COLUMNS)} |\n|---{'|--:' * len(COLUMNS)}|")
    for name, rows in found.items():
        shown = {column: f"{row['top1']:.1f}, {row['sqnr']:.0f} dB" for column, row in rows.items()}
        shown[FLOAT] = f"{rows[FLOAT]['top1']:.1f}"
        print(f"| {name} | {' | '.join(shown.get(column, '–') for column in COLUMNS)} |")


if __name__ == "__main__":
    main()

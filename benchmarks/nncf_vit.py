"""NNCF's int8 and edgevit's int8 of one classifier in OpenVINO: accuracy on the same images, and latency side by side.

    python benchmarks/nncf_vit.py MODEL --calib CALIB --eval EVAL -o DIR              accuracy, fp32 beside it
    python benchmarks/nncf_vit.py MODEL --calib CALIB --eval EVAL -o DIR --latency    and latency, on an idle machine

NNCF quantizes the float model that edgevit traced, with its model type TRANSFORMER and otherwise as it comes, and once
more without its SmoothQuant. Both engines run with the options of edgevit's bundle (`INFERENCE_PRECISION_HINT`
included). The latency ratio is NNCF / edgevit, above 1 edgevit is faster: every round in a fresh process, A B B A.
Work already in DIR is not repeated. Results: a table, DIR/accuracy.json and DIR/latency.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH keeps it off
from peers import NNCF, NO_NNCF, has_nncf, nncf_bundle

if TYPE_CHECKING:
    from edgevit.bundle import Bundle

OURS = "edgevit"
PEERS = {"NNCF TRANSFORMER": "nncf", "NNCF TRANSFORMER, no SmoothQuant": "nncf-no-smooth"}  # → folder in DIR


def bundles(model: str, precision: str, calib: Path, out: Path) -> dict[str, Bundle]:
    """Row → bundle; made unless it is there."""
    from edgevit.bundle import Bundle
    from edgevit.data import read_dataset
    from edgevit.load import load
    from edgevit.pipeline import ExportSettings, export

    found = {}
    for row, asked in (("fp32", "fp32"), (OURS, precision)):
        place = out / row
        if not place.exists():
            export(ExportSettings(model=model, target="openvino", precision=asked, out=place, calib=calib))
        found[row] = Bundle.load(place)
    checkpoint = load(model)
    assert checkpoint.module is not None
    images = list(read_dataset(calib).tensors(checkpoint.preprocess, 1))
    for row, folder in PEERS.items():
        found[row] = nncf_bundle(found[OURS], out / folder, checkpoint.module, images, **NNCF[row])
    return found


def accuracy(found: dict[str, Bundle], data: Path, path: Path) -> dict[str, Any]:
    """Row → top-1 and paired flips against float32; kept in `path`."""
    from edgevit.data import read_dataset
    from edgevit.evaluate import compare, evaluate

    scores = json.loads(path.read_text()) if path.exists() else {}
    images, base = read_dataset(data), None
    for row, bundle in found.items():
        if row not in scores:
            base = base or evaluate(found["fp32"], images)
            result = base if row == "fp32" else evaluate(bundle, images)
            scores[row] = {**result.to_json(), "against": compare(result, base)}
            path.write_text(json.dumps(scores, indent=1))
            print(row, scores[row], file=sys.stderr)
    return scores


def latency(found: dict[str, Bundle], rounds: int, path: Path) -> dict[str, Any]:
    """Row → median, and the ratio NNCF / edgevit with its interval; kept in `path`."""
    from edgevit.devices.bench import BenchPlan, profile
    from edgevit.measure import job

    measured = json.loads(path.read_text()) if path.exists() else {}
    ours = job(found[OURS])
    for row in PEERS:
        if row not in measured:
            # Our engine is the job and NNCF's the baseline, so the ratio is baseline / job as everywhere.
            summary = profile([ours], job(found[row]), BenchPlan(rounds=rounds)).to_json()
            measured[row] = summary
            path.write_text(json.dumps(measured, indent=1))
            print(row, summary["speedup"], file=sys.stderr)
    return measured


def main() -> None:
    """Quantize, evaluate, and measure if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument(
        "--precision", default="int8", help="edgevit's (default: int8, with what this CPU has beside it)"
    )
    parser.add_argument("--latency", action="store_true", help="measure too; nothing else may run")
    parser.add_argument("--rounds", type=int, default=12, help="fresh processes of each engine")
    arguments = parser.parse_args()
    if not has_nncf():
        sys.exit(NO_NNCF)
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = bundles(arguments.model, arguments.precision, arguments.calib, arguments.out)
    scores = accuracy(found, arguments.eval, arguments.out / "accuracy.json")
    measured = latency(found, arguments.rounds, arguments.out / "latency.json") if arguments.latency else {}
    print("| | top-1 | lost / won against fp32 | NNCF ms / edgevit ms |\n|---|--:|--:|--:|")
    for row in found:
        flips, ratio = scores[row]["against"], "–"
        if row in measured:
            speed = measured[row]["speedup"][found[OURS].name]
            ratio = f"{speed['ratio']:.2f} [{speed['ci95'][0]:.2f}, {speed['ci95'][1]:.2f}]"
        print(f"| {row} | {scores[row]['top1']:.2f} | {flips['flips_lost']} / {flips['flips_won']} | {ratio} |")


if __name__ == "__main__":
    main()

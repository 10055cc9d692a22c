"""Every training-free method on one classifier at three MAC budgets: accuracy, agreement, latency ratios.

    python benchmarks/methods.py MODEL --calib CALIB --eval EVAL -o DIR     exports, evaluates, measures, prints a table

Work already in DIR is not repeated. Accuracy comes from the ONNX Runtime engine; latency ratios are dense / reduced of
the same runtime in float32, every round in a fresh process, A B B A.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

BUDGETS = (0.7375, 0.6385, 0.5585)  # 0.924, 0.800 and 0.700 of the 1.254 giga-MACs of ViT-Tiny
SEARCHED = ("tome",)
HAND = {"tome": ("@4,8", "@4,7,10", "@3,6,9,11"), "mctf": ("@4,7,10",), "tofu": ("@4,7,10",), "atm": ("@4,7,10",)}
TARGETS = ("ort", "openvino")


def specs(depth: int) -> dict[str, str]:
    """Folder name → schedule: each method's own blocks solved for each budget, and searched ones."""
    from edgevit.tokens import METHODS, method

    found = {}
    for share in BUDGETS:
        for name in METHODS:
            cls = method(name)
            if cls.selector or cls.weights:
                continue
            until = f",until={depth - 1}@4" if name == "expedit" else ""
            for where in ("", *HAND.get(name, ())):
                found[f"{name}{where}-{share}"] = f"{name}:flops={share}{until}{where}"
        for name in SEARCHED:
            found[f"{name}-auto-{share}"] = f"{name}:auto,flops={share}"
    return found


def exported(model: str, target: str, spec: str, out: Path, calib: Path) -> dict | None:
    """The bundle's manifest; exports it unless it is there. None, with the reason printed, when it is refused."""
    from edgevit.bundle import Bundle
    from edgevit.errors import EdgeVitError
    from edgevit.pipeline import ExportSettings, export

    if not out.exists():
        try:
            export(ExportSettings(model=model, target=target, out=out, reduce=spec, calib=calib))
        except EdgeVitError as error:
            print(f"{spec} on {target}: {error}", file=sys.stderr)
            return None
    return Bundle.load(out).manifest


def accuracy(out: Path, names: list[str], data: Path) -> dict[str, dict]:
    """top-1 and agreement with dense of the ort bundles; kept in DIR/accuracy.json."""
    from edgevit.bundle import Bundle
    from edgevit.data import read_dataset
    from edgevit.evaluate import compare, evaluate

    path = out / "accuracy.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    images, dense = read_dataset(data), None
    for name in names:
        if name not in found:
            dense = dense or evaluate(Bundle.load(out / "ort" / "dense"), images)
            result = evaluate(Bundle.load(out / "ort" / name), images)
            found[name] = {"top1": result.top1, "agreement": compare(result, dense)["agreement"]}
            path.write_text(json.dumps(found, indent=1))
            print(name, found[name], file=sys.stderr)
    return found


def latency(out: Path, target: str, names: list[str], rounds: int) -> dict[str, dict]:
    """Speedup over dense on one target; kept in DIR/latency-TARGET.json."""
    from edgevit.bundle import Bundle
    from edgevit.devices.bench import BenchPlan, profile
    from edgevit.measure import job

    path = out / f"latency-{target}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    dense = job(Bundle.load(out / target / "dense"))
    plan = BenchPlan(rounds=rounds, warmup_s=0.2, min_seconds=0.5, min_samples=16)
    for name in names:
        if name not in found:
            measured = profile([job(Bundle.load(out / target / name))], dense, plan).to_json()
            found[name] = measured["speedup"][name]
            path.write_text(json.dumps(found, indent=1))
            print(target, name, found[name], file=sys.stderr)
    return found


def main() -> None:
    """Export all, evaluate all, then measure with nothing else running."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--no-search", action="store_true", help="leave the searched schedules out")
    parser.add_argument("--no-latency", action="store_true", help="export and evaluate only")
    arguments = parser.parse_args()
    manifests: dict[str, dict] = {}
    for target in TARGETS:
        (arguments.out / target).mkdir(parents=True, exist_ok=True)
        exported(arguments.model, target, "none", arguments.out / target / "dense", arguments.calib)
    for name, asked in specs(12).items():
        if arguments.no_search and ":auto" in asked:
            continue
        ort = exported(arguments.model, "ort", asked, arguments.out / "ort" / name, arguments.calib)
        if ort:
            manifests[name] = ort
            exact = ort["schedule"]["text"]  # what a search found must not be searched again
            exported(arguments.model, "openvino", exact, arguments.out / "openvino" / name, arguments.calib)
            print(name, exact, file=sys.stderr)
    names = list(manifests)
    scores = accuracy(arguments.out, names, arguments.eval)
    if arguments.no_latency:
        return
    ratios = {target: latency(arguments.out, target, names, arguments.rounds) for target in TARGETS}
    print("| schedule | GMAC | top-1 | agreement | ORT | OpenVINO |\n|---|--:|--:|--:|--:|--:|")
    for name in names:
        schedule = manifests[name]["schedule"]
        cells = [f"{ratios[t][name]['ratio']:.2f} [{', '.join(f'{v:.2f}' for v in ratios[t][name]['ci95'])}]"
                 for t in TARGETS]  # fmt: skip
        macs = schedule["macs"]["reduced"] / 1e9
        score = scores[name]
        print(f"| `{schedule['text']}` | {macs:.3f} | {score['top1']:.2f} | {score['agreement']:.1f} | "
              f"{' | '.join(cells)} |")  # fmt: skip


if __name__ == "__main__":
    main()

"""Can `edgevit profile` be trusted: no difference where there is none, a true one of 5 % found, and nothing added.

    python benchmarks/ab.py -o DIR [--repetitions 20] [--rounds 12] [--seconds 1.5] [--turn 1] [--threads 1]

Three demonstrations on this machine, in ONNX Runtime, with random weights (time does not depend on them):

    A/A       one engine against its own copy: the 95 % interval of the speedup excludes 1 at most twice in 20
    A/B       against a model with one small block more, about 5 %: the interval excludes 1, below it, 18 times in 20
    overhead  a bare onnxruntime loop in turns with the runner, inference by inference: within 2 %

Each repetition is a line of JSON in DIR/ab.jsonl, and the same command goes on behind them; the summary is printed.
Exit 1 where one does not hold. Only on a machine with nothing else running: it takes some 2 minutes a repetition with
the defaults.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevit.devices.plan import BenchPlan, Job

DEPTH, WIDTH, SIZE = 20, 192, 160
"""Twenty equal blocks: one more is 5 % of the blocks' time."""
MOST_FALSE, LEAST_FOUND = 0.1, 0.9
OVERHEAD = 0.02

BARE = """
import json, sys, time
import numpy as np, onnxruntime as ort
job = json.load(open(sys.argv[1]))
options = ort.SessionOptions()
options.intra_op_num_threads = job["options"]["threads"]
session = ort.InferenceSession(job["engine"], options, providers=["CPUExecutionProvider"])
feed = {"images": np.random.default_rng(0).standard_normal(job["input"]["shape"], dtype=np.float32)}
end = time.perf_counter() + 0.5
while time.perf_counter() < end:
    session.run(None, feed)
samples = []
while True:
    print("edgevit: turn", flush=True)
    if sys.stdin.readline() != "go\\n":
        break
    for _ in range(job["turn"]):
        start = time.perf_counter_ns()
        session.run(None, feed)
        samples.append((time.perf_counter_ns() - start) / 1e6)
record = {"job": job, "fake": False, "runtime": "onnxruntime", "runtime_version": "-", "samples_ms": samples,
          "load_ms": 0, "first_ms": 0, "peak_memory_bytes": 0, "threads": 1, "warmup": {"seconds": 0.5, "stable": True}}
json.dump(record, open(job["out"], "w"))
"""
"""What anyone would write, but that it takes turns."""


def build(folder: Path, depth: int) -> Path:
    """The engine of a plain Vision Transformer with so many blocks."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    from edgevit.export.to_onnx import to_onnx
    from edgevit.export.trace import trace
    from edgevit.stages import InputSpec

    path = folder / f"depth{depth}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        model = VisionTransformer(img_size=SIZE, embed_dim=WIDTH, depth=depth, num_heads=3, num_classes=10).eval()
        to_onnx(trace(model, InputSpec(1, SIZE, SIZE)), path)
    return path


def job(name: str, engine: Path) -> Job:
    """As the bare loop opens it: no options."""
    from edgevit.devices.plan import Job

    return Job(name, "ort", engine, {}, "images", (1, 3, SIZE, SIZE))


def compare(base: Path, other: Path, plan: BenchPlan) -> dict[str, Any]:
    """`other` against `base`: ratio (below 1: slower), interval, noise floor, and what profile says of it."""
    from edgevit.devices.bench import profile

    found = profile([job("B", other)], job("A", base), plan).speedups()["B"]
    return {
        "ratio": found.ratio,
        "ci95": list(found.ci95),
        "noise_floor": found.noise_floor,
        "differs": found.differs,
        "excludes_1": None not in found.ci95 and not found.ci95[0] <= 1 <= found.ci95[1],
    }


def overhead(engine: Path, plan: BenchPlan, folder: Path) -> dict[str, Any]:
    """How much longer an inference takes in the runner's loop than in a bare one, in turns."""
    from edgevit.devices import stats
    from edgevit.devices.lock import session_lock
    from edgevit.devices.pair import run_pair
    from edgevit.devices.plan import RUNNERS

    bare = folder / "bare.py"
    bare.write_text(BARE, encoding="utf-8")
    todo = {
        "engine": str(engine), "options": {"threads": plan.threads}, "seed": 0, "turn": plan.turn,
        "input": {"name": "images", "shape": [1, 3, SIZE, SIZE]}, "warmup_s": plan.warmup_s,
        "min_samples": plan.min_samples, "min_seconds": plan.min_seconds, "max_seconds": plan.max_seconds,
    }  # fmt: skip
    blocks: list[stats.Block] = []
    runners = {"stack": RUNNERS["ort"], "bare": bare}
    for number in range(plan.rounds):
        names = list(runners) if number % 2 == 0 else list(reversed(runners))
        with session_lock() as lock:
            found = run_pair(
                [todo | {"round": 2 * number}] * 2, [runners[name] for name in names], folder, names, 60.0, lock
            )
        samples = {name: tuple(record["samples_ms"]) for name, record in zip(names, found, strict=True)}
        blocks.append(stats.Block(samples["stack"], samples["bare"]))
    return {"overhead": stats.speedup(blocks).ratio - 1}


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description="A/A, A/B and overhead of edgevit profile")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--repetitions", type=int, default=20, metavar="N")
    parser.add_argument("--rounds", type=int, default=12, metavar="N")
    parser.add_argument("--seconds", type=float, default=1.5, metavar="S", help="of sampling, a round")
    parser.add_argument("--turn", type=int, default=1, metavar="N", help="as of edgevit profile; 0: round after round")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    arguments = parser.parse_args()
    from edgevit.devices.plan import BenchPlan

    arguments.out.mkdir(parents=True, exist_ok=True)
    few = {
        "warmup_s": 0.3,
        "min_samples": 10,
        "min_seconds": arguments.seconds,
        "max_seconds": 2 * arguments.seconds + 1,  # where others disturb, a warm-up never is stable
        "threads": arguments.threads,
        "turn": arguments.turn,
    }
    plan = BenchPlan(rounds=arguments.rounds, **few)
    base, more = build(arguments.out, DEPTH), build(arguments.out, DEPTH + 1)
    copy = arguments.out / "copy.onnx"
    shutil.copyfile(base, copy)
    path = arguments.out / "ab.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    for number in range(len(rows), arguments.repetitions):
        row = {"repetition": number, "aa": compare(base, copy, plan), "ab": compare(base, more, plan)}
        rows.append(row | {"overhead": overhead(base, BenchPlan(rounds=2, **few | {"turn": 1}), arguments.out)})
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(rows[-1]) + "\n")
    return judge(rows)


def judge(rows: list[dict[str, Any]]) -> int:
    """Print what was found; 1 where something does not hold."""
    false = sum(row["aa"]["excludes_1"] for row in rows)
    found = sum(row["ab"]["excludes_1"] and row["ab"]["ratio"] < 1 for row in rows)
    clear = sum(bool(row["ab"]["differs"]) for row in rows)
    added = median(row["overhead"]["overhead"] for row in rows)
    effect = 1 / median(row["ab"]["ratio"] for row in rows) - 1
    print(f"A/A: {false} of {len(rows)} intervals exclude 1 (at most {MOST_FALSE:.0%})")
    print(f"A/B: {found} of {len(rows)} found (at least {LEAST_FOUND:.0%}); the effect is {effect:.1%}")
    print(f"     {clear} of {len(rows)} above the noise floor too, which `profile` asks for before it says `differs`")
    print(f"overhead: {added:+.2%} against a bare loop (within {OVERHEAD:.0%})")
    holds = false <= MOST_FALSE * len(rows) and found >= LEAST_FOUND * len(rows) and abs(added) <= OVERHEAD
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())

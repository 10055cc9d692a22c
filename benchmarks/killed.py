"""One study in three forms: one worker; two of which one is killed, then the driver; two nodes of Ray, likewise.

    python benchmarks/killed.py -o DIR [--target openvino] [--trials 8]

A ViT of three blocks with random weights labels its own images; latency is a formula (`--device fake`), so that all
three must find the same. Prints the table of docs/tune.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also where PYTHONSAFEPATH keeps it off
from tests.tune.conftest import write_material
from tests.tune.nodes import of_ray, one_node, owner_joins
from tests.tune.test_workers import workers_of

WORKER_DIES, DRIVER_DIES = 2, 5
"""Trials that ended before."""


def trials(out: Path) -> list[dict[str, Any]]:
    """What a study has by now."""
    path = out / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def killed(command: list[str], out: Path, workers: Callable[[int], list[int]]) -> None:
    """Run a study, and kill a worker and then the driver on the way."""
    with subprocess.Popen(command) as driver:
        for count, victims in ((WORKER_DIES, workers), (DRIVER_DIES, lambda pid: [pid])):
            while len(trials(out)) < count:
                if driver.poll() is not None:
                    raise SystemExit(f"it ended before {count} trials")
                time.sleep(0.1)
            os.kill(victims(driver.pid)[0], signal.SIGKILL)


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether two studies found the same, but for numbers that scheduling may change, and for near misses."""
    aside = ("trial", "tries", "seconds", "command")

    def found(record: dict[str, Any]) -> dict[str, Any]:
        figures = {k: v for k, v in record["figures"].items() if "smoothed" not in k and k != "size_bytes"}
        return {**{k: v for k, v in record.items() if k not in aside}, "figures": figures}

    return [found(r) for r in one] == [found(r) for r in other]


def main() -> None:
    """Run the forms one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--target", default="openvino")
    parser.add_argument("--trials", default="8")
    arguments = parser.parse_args()
    data = arguments.out.resolve() / "data"
    data.mkdir(parents=True)
    write_material(data)
    study = [
        sys.executable, "-m", "edgevit", "tune", data / "model.pt", "--trust-pickle", "--preprocess", data / "pre.json",
        "--target", arguments.target, "--device", "fake", "--calib", data / "calib.csv", "--eval", data / "eval.csv",
        "--max-drop", "40", "--trials", arguments.trials,
    ]  # fmt: skip

    def command(name: str, *more: str) -> tuple[list[str], Path]:
        out = arguments.out / name
        return [*map(str, study), *more, "-o", str(out)], out

    print("| | trials | tried again | the same | winner | points lost, held back |\n|---|--:|--:|---|---|--:|")

    def row(name: str, words: list[str], out: Path, first: Path) -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        found, best = trials(out), json.loads((out / "result.json").read_text())["best"]
        again = sum(r["tries"] - 1 for r in found)
        won = f"`{best['schedule']}` {best['precision']}, {best['speedup']:.3f} times (fake)"
        like = "yes" if same(found, trials(first)) else "NO"
        print(f"| {name} | {len(found)} | {again} | {like} | {won} | {best['top1_drop']:.2f} |", flush=True)

    alone, first = command("alone")
    row("1 worker", alone, first, first)
    two, out = command("two", "--workers", "2")
    killed(two, out, workers_of)
    row("`--workers 2`", two, out, first)
    with one_node() as address, owner_joins(address):
        far, out = command("ray", "--ray", address)
        killed(far, out, lambda _: of_ray("Worker"))
        row("`--ray`, 2 nodes", far, out, first)


if __name__ == "__main__":
    main()

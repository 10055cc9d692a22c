"""What near misses say of a drop beside the flips alone: float32 models reduced, on both halves of a labelled set.

    python benchmarks/near_misses.py MODEL --eval eval.csv --schedules tome:flops=0.65@4,8 tofu:flops=0.85@4,8

Points lost, with standard errors, by the flips and by `edgevit.tune.flips.smoothed_drop`: an estimate that is worth its
name gives both halves the same drop, and that of both together.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from edgevit.adapters import adapt
from edgevit.data import read_dataset
from edgevit.evaluate import Answer, scored
from edgevit.load import load
from edgevit.reduce import reduce
from edgevit.tokens.schedule import parse_schedule
from edgevit.tune.flips import smoothed_drop

BATCH = 8


def plain(dense: Sequence[Answer], ours: Sequence[Answer]) -> tuple[float, float]:
    """Points lost by the flips alone, and the standard error."""
    flips = [(was.rank == 0) - (now.rank == 0) for was, now in zip(dense, ours, strict=True)]
    mean = sum(flips) / len(flips)
    spread = math.sqrt(sum((flip - mean) ** 2 for flip in flips) / len(flips))
    return 100 * mean, 100 * spread / math.sqrt(len(flips))


def near(dense: Sequence[Answer], ours: Sequence[Answer]) -> tuple[float, float]:
    """Points lost where near misses count in part."""
    return smoothed_drop([a.margin for a in dense], [a.margin for a in ours])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--schedules", nargs="+", required=True)
    arguments = parser.parse_args()
    checkpoint, data = load(arguments.model), read_dataset(arguments.eval)
    vit = adapt(checkpoint.module)

    def answers(module: Callable[[torch.Tensor], torch.Tensor]) -> list[Answer]:
        def run(images):
            with torch.no_grad():
                return module(torch.from_numpy(images)).numpy()

        return list(scored(run, "module", checkpoint.preprocess, data, BATCH))

    dense, half = answers(checkpoint.callable()), len(data) // 2
    parts = {"first half": slice(0, half), "second half": slice(half, None), "all": slice(None)}
    print("| schedule | " + " | ".join(f"{name}: flips | near misses" for name in parts) + " |")
    print("|---|" + "--:|" * 2 * len(parts))
    for text in arguments.schedules:
        ours = answers(reduce(vit, parse_schedule(text)).module)
        found = [way(dense[part], ours[part]) for part in parts.values() for way in (plain, near)]
        print(f"| `{text}` | " + " | ".join(f"{drop:.2f} ± {error:.2f}" for drop, error in found) + " |", flush=True)


if __name__ == "__main__":
    main()

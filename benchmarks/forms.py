"""Which form of attention and of a reduction step wins on a target, at batch 1 and 8: what `Policy.forms` is chosen by.

    python benchmarks/forms.py -o DIR [--targets ort openvino] [--batches 1 8] [--schedules none tome:r=8]

Engines in float32 with random weights (time does not depend on them), every round in a fresh process, A B B A against
the dense engine as traced. Prints a table: speedup over it with its 95 % interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from edgevit.devices.plan import Job
    from edgevit.tokens.lowering import Lowering

SCHEDULES = ("none", "tome:r=45@4,8", "evit:keep=0.7@4,7,10", "tome:r=8")


class Variant(NamedTuple):
    """A way to write the same model: which passes, and how a step selects. forms None: the target's own."""

    name: str
    forms: tuple[str, ...] | None
    explicit: bool | None = None
    lowering: Lowering = "gather"


VARIANTS = (
    Variant("as traced", (), False),
    Variant("the target's forms", None),
    Variant("the target's forms, matmul", None, None, "matmul"),
)


def engine(arch: str, target: str, batch: int, schedule: str, variant: Variant, folder: Path) -> Job:
    """Build one engine and say how to time it."""
    import timm
    import torch

    from edgevit.adapters import adapt
    from edgevit.devices.plan import Job
    from edgevit.export.rewrite import rewritten
    from edgevit.export.trace import trace
    from edgevit.reduce import reduce
    from edgevit.runtimes import runtime
    from edgevit.stages import InputSpec
    from edgevit.tokens.schedule import parse_schedule

    torch.manual_seed(0)
    found = runtime(target)
    explicit = found.policy.explicit if variant.explicit is None else variant.explicit
    vit = adapt(timm.create_model(arch).eval())
    reduced = reduce(vit, parse_schedule(schedule), variant.lowering, explicit)
    graph = trace(reduced.module, InputSpec(batch, 224, 224))
    graph = rewritten(graph, found.policy.forms if variant.forms is None else variant.forms)
    folder.mkdir(parents=True, exist_ok=True)
    built = found.build(graph, folder, "fp32")
    name = f"{schedule} {variant.name}"
    return Job(name, found.runner, folder / built.entry, built.options, built.inputs.name, built.inputs.shape)


def rows(
    arch: str, target: str, batch: int, schedules: list[str], rounds: int, out: Path
) -> Iterator[tuple[str, str, str]]:
    """Schedule, variant, and the speedup over dense as traced."""
    from edgevit.devices.bench import BenchPlan, profile

    def job(schedule: str, variant: Variant) -> Job:
        place = f"{target}-{batch}-{schedule}-{variant.name}".replace(" ", "-").replace(":", "-").replace(",", "-")
        return engine(arch, target, batch, schedule, variant, out / place)

    dense = job("none", VARIANTS[0])
    asked = [(s, v) for s in schedules for v in VARIANTS[s == "none" :] if not (s == "none" and v.lowering == "matmul")]
    jobs = [job(schedule, variant) for schedule, variant in asked]
    plan = BenchPlan(rounds=rounds, warmup_s=0.2, min_seconds=0.4, min_samples=8)
    speedup = profile(jobs, dense, plan).to_json()["speedup"]
    for (schedule, variant), made in zip(asked, jobs, strict=True):
        found = speedup[made.bundle]
        yield schedule, variant.name, f"{found['ratio']:.2f} ({found['ci95'][0]:.2f} to {found['ci95'][1]:.2f})"


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", default=["ort", "openvino"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES)
    parser.add_argument("--arch", default="deit_tiny_patch16_224")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    print("| target | batch | schedule | form | speedup over dense as traced |\n|---|--:|---|---|---|", flush=True)
    for target in arguments.targets:
        for batch in arguments.batches:
            for row in rows(arguments.arch, target, batch, arguments.schedules, arguments.rounds, arguments.out):
                print(f"| {target} | {batch} | `{row[0]}` | {row[1]} | {row[2]} |", flush=True)


if __name__ == "__main__":
    main()

"""Target `coreml`: an ML Program for Apple devices, checked here by a reference executor of what was written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import RuntimeRefusal
from edgevit.export.to_coreml import import_coremltools, to_coreml, unknown
from edgevit.names import did_you_mean
from edgevit.quant.policies import POLICIES
from edgevit.runtimes.base import Policy, Session
from edgevit.runtimes.coreml_residency import forecast, summary
from edgevit.runtimes.mil_file import Program, read_program
from edgevit.stages import Engine, Graph, Refusal

PACKAGE, RESIDENCY = "model.mlpackage", "residency.json"
PALETTES = {"palettized4": 16, "palettized6": 64}
"""Entries of the table that the weights of a precision are looked up in."""
CHOICES = {
    "deployment": ("iOS16", "iOS17", "iOS18", "iOS26"),
    "units": ("all", "cpuAndNeuralEngine", "cpuAndGPU", "cpuOnly"),
    "attention": ("products", "fused"),
}


@dataclass(frozen=True)
class CoreMl:
    """Core ML. Options: the oldest system it must run on, the units the app asks for, and how attention is written.

    attention: `products` (two matrix products and a softmax, which the Neural Engine has) or `fused` (one operator of
    iOS 18, made for the GPU).
    """

    deployment: str = "iOS18"
    units: str = "all"
    attention: str = "products"

    name = "coreml"
    extra = "coreml"
    runner = ""
    checked_by = "a reference executor of the saved ML Program, in torch (Core ML runs on Apple systems only)"
    unverified = (
        "latency, and on which unit each operator runs: residency.json is a forecast",
        "how the device rounds float16: the executor rounds once an operator",
    )
    policy = Policy(
        precisions=("fp32", "fp16", "int8", "w8", "palettized4", "palettized6"),
        others=("w8",),
        int8="int8",
        scheme=POLICIES["coreml"],
        rewrites=("fold_batch_norm", "fold_layer_scale", "drop_unread_tokens", "fold_norm_affine"),
        lowering="matmul",  # a gather leaves the Neural Engine
        # fp32: other summation order. The others round at every operator, and a rounded key may pick another, nearly
        # equal, token: judged by agreement.
        tolerance={"fp32": 1e-4, "fp16": None, "int8": None, "w8": None, "palettized4": None, "palettized6": None},
    )

    def __post_init__(self) -> None:
        for option, known in CHOICES.items():
            given = getattr(self, option)
            if given not in known:
                hint = did_you_mean(given, known)
                raise RuntimeRefusal(f"coreml has no {option} {given!r}{hint}; it has {', '.join(known)}")
        if self.attention == "fused" and self.deployment in ("iOS16", "iOS17"):
            raise RuntimeRefusal(f"attention=fused needs iOS18, and deployment is {self.deployment}; use products")

    def version(self) -> str:
        """Version of coremltools."""
        return str(import_coremltools().__version__)

    def resolve(self, precision: str) -> str:
        """Names are exact already. Raises RuntimeRefusal for what the deployment target cannot hold."""
        if precision == "int8" and self.deployment == "iOS16":
            raise RuntimeRefusal("int8 activations need iOS17, and deployment is iOS16; use w8, or deployment=iOS17")
        return precision

    def runs_here(self, precision: str = "") -> str | None:
        """Never: what times it is an app on the device."""
        return "ML Programs run on Apple devices only; measure the bundle in an app there"

    def refuses(self, graph: Graph) -> list[Refusal]:
        """Operators that coremltools has no conversion for."""
        import_coremltools()
        return unknown(graph.program)

    def build(self, graph: Graph, folder: Path, precision: str) -> Engine:
        """Write `model.mlpackage`, and the forecast of where it will run."""
        package = folder / PACKAGE
        half = precision != "fp32"
        to_coreml(graph, package, self.deployment, half, self.attention == "fused", PALETTES.get(precision, 0))
        program = read_program(package)
        rows = forecast(program)
        note = "a forecast from public knowledge, not a measurement; Xcode's performance report or MLComputePlan tells"
        text = {"note": note, "summary": summary(rows), "operators": [row.to_json() for row in rows]}
        (folder / RESIDENCY).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        files = sorted(path.relative_to(folder).as_posix() for path in package.rglob("*") if path.is_file())
        options: dict[str, Any] = {
            "deployment": self.deployment,
            "compute_units": self.units,
            "attention": self.attention,
            "residency_forecast": summary(rows),
        }
        if precision in PALETTES:
            options["not_palettized"] = _whole(program)
        entries = (*files, RESIDENCY)
        return Engine(folder, self.name, self.version(), precision, PACKAGE, entries, graph.inputs, options)

    def open(self, engine: Engine, threads: int | None = None) -> Session:
        """The executor on what lies on disk."""
        from edgevit.runtimes.mil import MilSession

        return MilSession(engine.folder / engine.entry, threads)


def _whole(program: Program) -> list[str]:
    """Layers whose weight is no palette: it has few numbers, or its channels do not divide into groups."""
    packed = {name for o in program.operations if o.kind == "constexpr_lut_to_dense" for name, _ in o.outputs}
    layers = (o for o in program.operations if o.kind in ("linear", "conv"))
    return [o.outputs[0][0] for o in layers if o.inputs["weight"] not in packed]

"""`edgevit inspect`: what a model or bundle is made of, and what a schedule does to it."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from edgevit.commands.terminal import add_model_flags, bytes_text, print_json, print_table
from edgevit.errors import DataError, UnsupportedModel
from edgevit.files import whole


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of inspect."""
    add_model_flags(parser)
    parser.add_argument("--reduce", default="none", metavar="SPEC", help="token schedule")
    parser.add_argument(
        "--image", type=Path, action="append", metavar="FILE", help="draw kept and merged tokens (repeat)"
    )
    parser.add_argument("--regions", action="store_true", help="list layers by region and reconstruction unit")
    parser.add_argument("-o", "--out", type=Path, default=Path(), metavar="DIR", help="folder for tokens.png")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Inspect a bundle's manifest, or load and trace a model."""
    from edgevit.bundle import MANIFEST

    path = Path(arguments.model)
    is_bundle = (path / MANIFEST).is_file()
    if is_bundle and arguments.regions:
        raise DataError(f"{path} is a bundle, and --regions reads a traced program; give the model it was made from")
    found = _bundle(path) if is_bundle else _model(arguments)
    if arguments.json:
        print_json(found)
        return 0
    regions = found.pop("regions", None)
    found |= {key: _sizes(found[key]) for key in ("parts", "memory") if key in found}
    for key, value in found.items():
        print(f"{key:10} {_text(value)}")
    if regions:
        _print_regions(regions)
    return 0


def _sizes(found: dict[str, Any]) -> dict[str, str]:
    return {k: bytes_text(v) if isinstance(v, int) else str(v or "unknown") for k, v in found.items()}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(f"({_text(v)})" if isinstance(v, dict) else str(v) for v in value)
    return str(value)


def _bundle(path: Path) -> dict[str, Any]:
    from edgevit.bundle import Bundle
    from edgevit.memory import memory, sizes

    bundle = Bundle.load(path)
    m = bundle.manifest
    return {
        "bundle": str(path),
        "model": m["model"]["name"],
        "target": m["target"],
        "runtime": f"{m['runtime']['name']} {m['runtime']['version']}",
        "precision": m["precision"],
        "schedule": m["schedule"]["text"],
        "tokens": m["schedule"]["tokens"],
        "macs": m["schedule"]["macs"],
        "size_bytes": bundle.size_bytes,
        "parts": sizes(bundle),
        "memory": memory(bundle),
        "passes": m["passes"],
        "options": m["runtime"]["options"],
        "check": m["check"],
        "kept_float": dict(Counter(r["reason"] for r in m["kept_float"])),
    }


def _model(arguments: argparse.Namespace) -> dict[str, Any]:
    from edgevit.adapters import adapt
    from edgevit.export.trace import trace, trace_checkpoint
    from edgevit.model_settings import ModelSettings, model_keywords
    from edgevit.reduce import dense_macs, reduce
    from edgevit.stages import InputSpec
    from edgevit.tokens.schedule import parse_schedule

    schedule = parse_schedule(arguments.reduce)
    checkpoint = ModelSettings(**model_keywords(arguments)).load()
    inputs = InputSpec(1, *checkpoint.preprocess.size)
    found: dict[str, Any] = {"model": checkpoint.name, "arch": checkpoint.arch, "sha256": checkpoint.sha256}
    found["preprocess"] = checkpoint.preprocess.to_dict()
    try:
        if checkpoint.module is None:
            raise UnsupportedModel("an exported program has no blocks to take apart")
        vit = adapt(checkpoint.module)
    except UnsupportedModel as error:
        if not schedule.is_none or arguments.image:
            raise
        graph = trace_checkpoint(checkpoint, inputs)
        macs = dense_macs(graph.program.module(), inputs.shape)
        found |= {"adapter": f"none ({error})", "macs": {"dense": macs, "reduced": macs}}
    else:
        reduced = reduce(vit, schedule)
        graph = trace(reduced.module, InputSpec(reduced.images, *checkpoint.preprocess.size))
        found |= {
            "adapter": vit.family,
            "blocks": len(vit.blocks),
            "prefix": vit.prefix_tokens,
            "grid": list(vit.grid),
            "stages": [
                {"blocks": len(s.blocks), "grid": list(s.grid), "groups": s.groups, "restores": s.restores}
                for s in vit.stages
            ],
            "schedule": str(reduced.schedule),
            "tokens": list(reduced.tokens),
            "macs": {"dense": reduced.dense_macs, "reduced": reduced.reduced_macs},
            "notes": list(reduced.notes),
        }
        if arguments.image:
            found["picture"] = str(_draw(arguments, checkpoint, vit, reduced))
    operators = Counter(str(n.target) for n in graph.program.graph.nodes if n.op == "call_function")
    found["operators"] = dict(operators.most_common())
    if arguments.regions:
        from edgevit.quant.costs import summary

        found["regions"] = summary(graph.program.module())
    return found


def _print_regions(found: dict[str, Any]) -> None:
    """One row a layer, then one a region."""
    from rich.table import Table

    layers, regions = Table(), Table()
    for column in ("layer", "operator", "region", "unit"):
        layers.add_column(column)
    for row in found["layers"]:
        unit = found["units"][row["unit"]]["name"]
        layers.add_row(row["layer"], row["operator"], row["region"], f"{row['unit']} {unit}")
    for column in ("region", "layers", "parameters", "MACs"):
        regions.add_column(column, justify="left" if column == "region" else "right")
    for name, row in found["summary"].items():
        regions.add_row(name, str(row["layers"]), f"{row['parameters']:,}", f"{row['macs_share']:.1%}")
    print_table(layers)
    print_table(regions)


def _draw(arguments: argparse.Namespace, checkpoint: Any, vit: Any, reduced: Any) -> Path:
    """tokens.png: one row of panels per image."""
    from edgevit.picture import contact, draw_file

    if reduced.module is reduced.original:
        raise DataError("--image draws kept and merged tokens, and this schedule reduces none; pass --reduce SPEC")
    rows = [draw_file(file, checkpoint.preprocess, reduced.module, vit.grid)[0] for file in arguments.image]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = Path(arguments.out) / "tokens.png"
    with whole(path) as beside:
        contact(rows).save(beside, format="PNG")
    return path

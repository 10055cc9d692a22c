"""The layers of a built engine, from `--exportLayerInfo` or the engine inspector: is attention one kernel?"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from edgevit.errors import MeasureError

FUSED = re.compile(r"mha|fmha|flash_?att", re.IGNORECASE)
SOFTMAX = re.compile(r"softmax|SubExp", re.IGNORECASE)
"""By its name, or as Myelin names what it made of one: `__myl_AddMaxrSubExpSum_...`."""
ORIGIN = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|$)")

PROFILED = re.compile(
    r'"name"\s*:\s*"(.*?)"\s*,\s*"timeMs"\s*:[^,}]*,\s*"averageMs"\s*:\s*([\d.e+-]+)'
    r'(?:\s*,\s*"medianMs"\s*:\s*([\d.e+-]+))?'
)


@dataclass(frozen=True)
class Layers:
    """names: all layers, in order. fused: those that are a whole attention. softmax: those with a softmax in pieces.

    sources: layer → the ONNX nodes that it computes.
    """

    names: tuple[str, ...]
    fused: tuple[str, ...]
    softmax: tuple[str, ...]
    sources: dict[str, tuple[str, ...]]


def read_layers(text: str) -> Layers:
    """The JSON of 10.x (with `Bindings`) and of 11.x (with `I/O Tensors`). Raises MeasureError.

    Engines that were built without `--profilingVerbosity=detailed` have bare names: what is fused is unknown.
    """
    rows = json.loads(text).get("Layers")
    if not rows:
        raise MeasureError("this is no layer information of TensorRT: it has no Layers")
    if any(isinstance(row, str) for row in rows):
        raise MeasureError("the engine keeps layer names alone; build it with --profilingVerbosity=detailed")
    fused = [row["Name"] for row in rows if FUSED.search(_kernel(row))]
    softmax = [row["Name"] for row in rows if SOFTMAX.search(_kernel(row)) and row["Name"] not in fused]
    sources = {row["Name"]: _sources(row) for row in rows}
    return Layers(tuple(row["Name"] for row in rows), tuple(fused), tuple(softmax), sources)


def read_profile(text: str, layers: Layers) -> list[tuple[str, str, float]]:
    """`--exportProfile` → name, operator and milliseconds of each layer, named by the first ONNX node it computes.

    Its names are not escaped, so it is no JSON. Raises MeasureError.
    """
    found = []
    for name, average, median in PROFILED.findall(text):
        source = next(iter(layers.sources.get(name, ())), name)
        operator = re.sub(r"^node_|(_\d+)+$", "", source.rpartition("/")[2])
        found.append((source, operator, float(median or average)))
    if not found:
        raise MeasureError("this is no --exportProfile of trtexec: no row has averageMs")
    return found


def fused_attention(layers: Layers, blocks: int) -> str | None:
    """None where each of `blocks` attentions is one kernel, else what is there instead."""
    if len(layers.fused) >= blocks and not layers.softmax:
        return None
    rest = f"; {len(layers.softmax)} softmax kernels, first {layers.softmax[0]}" if layers.softmax else ""
    return f"{len(layers.fused)} of {blocks} attentions are fused{rest}"


def _kernel(row: dict[str, Any]) -> str:
    return " ".join(str(row.get(key, "")) for key in ("Name", "LayerType", "TacticName"))


def _sources(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(ORIGIN.findall(str(row.get("Metadata", ""))))

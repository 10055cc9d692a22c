"""Decisions in float32 under OpenVINO's bf16 and f16 hints: which operators, and the mark that its plugins read.

A rounded similarity picks another token wherever two lie nearer than a rounding step, in bf16 2**-8 of a cosine near 1.
So what a top-k, an argmax or a comparison is computed from stays float32, back to the nearest layers and residual adds.
What these hand over is as the hint leaves it, and so is an RMSNorm on the way: OpenVINO fuses it and forgets its mark.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.quant.flow import LAYOUT, Flow, operator
from edgevit.quant.structure import Structure

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

# OpenVINO's runtime attribute for "do not compute this in a lower precision". Its Python cannot set it, its files can.
MARK = {"name": "precise", "version": "0"}
UNNAMED = re.compile(r"[A-Z]\w*_\d+")  # what the converter's own rewrites make, as `ReduceSum_204`


def deciding(module: GraphModule) -> set[str]:
    """Names of the float nodes that integers and booleans are computed from.

    Only nodes that compute, and moves behind them: a float32 copy of a rounded tensor would only cost.
    """
    flow = Flow(module)
    parts = Structure(flow)
    read = [i for n in flow.nodes if not _is_float(n) for i in flow.inputs[n] if _is_float(i)]
    above = {n for n in flow.back(read, parts.ends) if not parts.ends(n)}
    picks = {n for n in flow.nodes if not _is_float(n) and any(map(_is_float, flow.inputs[n]))}
    found: set[Node] = set()
    for node in flow.nodes:
        if node in picks or (node in above and (operator(node) not in LAYOUT or found.intersection(flow.inputs[node]))):
            found.add(node)
    return {node.name for node in found}


def _is_float(node: Node) -> bool:
    """Of several values (a top-k's) the last counts: its indices."""
    value = node.meta["val"]
    value = value[-1] if isinstance(value, (list, tuple)) else value
    return bool(value.dtype.is_floating_point)


def keep_float32(path: Path, names: set[str]) -> None:
    """Mark the layers of an IR file that come from nodes of these names, and unnamed ones in front of them."""
    tree = ET.parse(path)
    layers = {layer.get("id"): layer for layer in tree.iterfind("layers/layer")}
    marked = {key for key, layer in layers.items() if str(layer.get("name")).split("/")[0] in names}
    for edge in tree.iterfind("edges/edge"):
        source = layers[edge.get("from-layer")]
        unnamed = UNNAMED.fullmatch(str(source.get("name"))) and source.get("type") != "Const"
        if unnamed and edge.get("to-layer") in marked:
            marked.add(source.get("id"))
    for key in marked:
        layer = layers[key]
        info = layer.find("rt_info")
        if info is None:  # it stands in front of the ports
            info = ET.Element("rt_info")
            layer.insert(next(i for i, child in enumerate(layer) if child.tag in ("input", "output")), info)
        ET.SubElement(info, "attribute", MARK)
    tree.write(path, encoding="utf-8", xml_declaration=True)

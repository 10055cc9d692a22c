"""Decisions in float32 under OpenVINO's bf16 and f16 hints: the mark that its plugins read.

What a top-k, an argmax or a comparison is computed from (`edgevit.quant.decisions`) stays float32. What the nearest
layers and residual adds hand over is as the hint leaves it, and so is an RMSNorm on the way: OpenVINO fuses it and
forgets its mark.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

# OpenVINO's runtime attribute for "do not compute this in a lower precision". Its Python cannot set it, its files can.
MARK = {"name": "precise", "version": "0"}
UNNAMED = re.compile(r"[A-Z]\w*_\d+")  # what the converter's own rewrites make, as `ReduceSum_204`


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

"""Layers of an IR file named by their place in the model, so that what times them gives it back (`edgevit.places`)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path


def name_by_place(path: Path, places: Mapping[str, str]) -> None:
    """`linear_5/aten.linear.default/MatMul` becomes `blocks.3/linear_5/aten.linear.default/MatMul`.

    places: operator of the program → place. What the converter made itself keeps its name.
    """
    tree = ET.parse(path)
    for layer in tree.iterfind("layers/layer"):
        name = str(layer.get("name"))
        place = places.get(name.partition("/")[0])
        if place and layer.get("type") not in ("Const", "Parameter", "Result"):
            layer.set("name", f"{place}/{name}")
    tree.write(path, encoding="utf-8", xml_declaration=True)

"""GELU, which exporters before opset 20 write as its formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.from_onnx.editing import Editor, Pattern

if TYPE_CHECKING:
    from edgevit.from_onnx.read import Foreign

ERF = (("Erf", ("Div", "x", 1.4142135)), ("Erf", ("Mul", "x", 0.70710678)))
CUBIC = tuple(
    ("Add", "x", ("Mul", cube, 0.044715))
    for cube in (("Pow", "x", 3.0), ("Mul", "x", ("Mul", "x", "x")), ("Mul", "x", ("Pow", "x", 2.0)))
)
TANH = tuple(("Tanh", ("Mul", cubic, 0.79788456)) for cubic in CUBIC)


def _halved(bell: Pattern) -> tuple[Pattern, ...]:
    """X * (1 + bell) / 2, in the orders that exporters write."""
    one = ("Add", bell, 1.0)
    halves = [half for value in (one, "x", ("Mul", "x", one)) for half in (("Mul", value, 0.5), ("Div", value, 2.0))]
    return (*(("Mul", "x", h) for h in halves[:2]), *(("Mul", h, one) for h in halves[2:4]), *halves[4:])


FORMS = {
    "none": tuple(p for bell in ERF for p in _halved(bell)),
    "tanh": tuple(p for bell in TANH for p in _halved(bell)),
}


def fuse_gelu(foreign: Foreign) -> int:
    """X * (1 + erf(x / √2)) / 2  becomes  Gelu(x); with tanh its approximation; how many."""
    editor, count = Editor(foreign), 0
    for node in foreign.model.graph.node:
        if node.op_type not in ("Mul", "Div"):
            continue
        for approximate, patterns in FORMS.items():
            found = next((f for p in patterns if (f := editor.match(node.output[0], p))), None)
            if found:
                editor.replace(node, "Gelu", [found["x"]], approximate=approximate)
                count += 1
                break
    return count

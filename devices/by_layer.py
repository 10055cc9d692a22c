"""The times of single layers, summed by block and reduction step: what do the top-k and the merge cost here?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgevit.places import REDUCTION

ELSEWHERE = "elsewhere"
"""Where no layer says its place: an engine from before names had them, or from another tool."""


def placed(layers: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Layers with the place that their names begin with.

    One that the runtime made is where the next layer is that has a place, and else where the last was: what a rewrite
    adds stands in front of what it serves. `by_neighbour` says so.
    """
    own = [name.partition("/")[0] if "/" in name and _is_place(name) else None for name, _, _ in layers]
    found: list[dict[str, Any]] = []
    after: str | None = None
    for (name, operator, ms), place in zip(reversed(layers), reversed(own), strict=True):
        after = place or after
        found.append({"name": name, "operator": operator, "ms": ms, "place": after, "by_neighbour": place is None})
    found.reverse()
    last = next((place for place in reversed(own) if place), ELSEWHERE)
    return [{**layer, "place": layer["place"] or last} for layer in found]


def _is_place(name: str) -> bool:
    head = name.partition("/")[0]
    return head in ("stem", "head") or head.endswith(REDUCTION) or head.rpartition(".")[2].isdigit()


def summary(layers: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Milliseconds and shares: of all, of each place, and of the reduction steps together, there by operator."""
    rows = placed(layers)
    total = sum(row["ms"] for row in rows)
    reduction = [row for row in rows if row["place"].endswith(REDUCTION)]

    def shares(found: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
        sums: dict[str, float] = {}
        for row in found:
            sums[row[key]] = sums.get(row[key], 0.0) + row["ms"]
        return [{key: name, "ms": ms, "share": ms / total if total else 0.0} for name, ms in sums.items()]

    spent = sum(row["ms"] for row in reduction)
    return {
        "layers_ms": total,
        "by_neighbour_ms": sum(row["ms"] for row in rows if row["by_neighbour"]),
        "places": shares(rows, "place"),
        "reduction": {
            "ms": spent,
            "share": spent / total if total else 0.0,
            "operators": sorted(shares(reduction, "operator"), key=lambda row: -row["ms"]),
        },
        "layers": rows,
    }

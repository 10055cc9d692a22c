"""Weights as a table and small indices into it (4 bits: 16 entries): k-means on the values, every time the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

STEPS, BINS = 40, 256


def table_and_places(values: np.ndarray[Any, Any], entries: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Values of any shape → (table `[entries]` ascending, in their type; index of each value, flat, uint8).

    Lloyd's algorithm in one dimension: sorted, so that clusters are intervals and their means come from running sums.
    It starts as many entries would lie: as dense as the cube root of the values' own density (Panter and Dite, 1951).
    """
    import numpy as np

    flat = values.reshape(-1).astype(np.float64)
    ordered = np.sort(flat)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    counts, edges = np.histogram(flat, BINS)
    share = np.cumsum(np.cbrt(counts))
    table = np.interp((np.arange(entries) + 0.5) / entries * share[-1], share, edges[1:])
    for _ in range(STEPS):
        ends = np.searchsorted(ordered, (table[1:] + table[:-1]) / 2)
        ends = np.concatenate([[0], ends, [len(ordered)]])
        counts = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(counts, 1)
        table = np.where(counts > 0, means, table)
    stored = table.astype(values.dtype)
    borders = (stored[1:].astype(np.float64) + stored[:-1].astype(np.float64)) / 2
    return stored, np.searchsorted(borders, flat).astype(np.uint8)

"""One measured bundle as a row, what its columns say, and the sentence that sums all rows up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Interval = tuple[float, float] | tuple[None, None] | None
"""Low and high end at 95 %; None, or two of them, where too little was measured for one."""

DASH = "–"
"""What was not measured."""
LOSS_LIMIT = 1.0
"""Points of top-1 that the headline's row may lose against the baseline."""


@dataclass(frozen=True)
class Row:
    """One bundle beside the others of the same run; the first row of a report is its baseline.

    top1, top1_se, agreement: percent. flips_lost, flips_won: images that only the baseline, or only this
    bundle, gets right. speedup: baseline latency / this latency, so above 1 is faster.
    """

    name: str
    bundle: str
    target: str
    precision: str
    schedule: str
    top1: float | None = None
    top1_se: float | None = None
    images: int | None = None
    agreement: float | None = None
    flips_lost: int | None = None
    flips_won: int | None = None
    median_ms: float | None = None
    ci95_ms: Interval = None
    speedup: float | None = None
    speedup_ci95: Interval = None
    size_bytes: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class Headline:
    """The sentence, a second one with the figures behind it, the row to point out, if one won, and what it won as."""

    text: str
    detail: str = ""
    row: int | None = None
    tag: str = f"fastest within {LOSS_LIMIT:g} point"


@dataclass(frozen=True)
class Cell:
    """A value and the smaller print below it."""

    value: str
    detail: str = ""


COLUMNS = (
    Cell("Model"),
    Cell("Top-1", "%"),
    Cell("Agree", "%"),
    Cell("Lost / won"),
    Cell("Latency", "ms"),
    Cell("Speedup"),
    Cell("Size", "MB"),
    Cell("MACs", "G"),
)
"""Names and units."""


def cells(row: Row, baseline: bool) -> tuple[Cell, ...]:
    """The columns of one row, in the order of COLUMNS."""
    tokens = "all tokens" if row.schedule == "none" else row.schedule
    what = " · ".join(part for part in (tokens, row.precision, row.target) if part)
    flips = DASH if row.flips_lost is None or row.flips_won is None else f"{row.flips_lost} / {row.flips_won}"
    return (
        Cell(row.name, what),
        Cell(_accuracy(row), "" if row.images is None else f"{row.images} images"),
        Cell(DASH if row.agreement is None else f"{row.agreement:.1f}"),
        Cell(flips),
        Cell(_ms(row.median_ms), _range(row.ci95_ms, digits(row.median_ms))),
        Cell("baseline") if baseline else _speedup(row),
        Cell(DASH if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f}"),
        Cell(DASH if row.macs is None else f"{row.macs / 1e9:.2f}"),
    )


def bounds(interval: Interval) -> tuple[float, float] | None:
    """The interval's ends, or None where there is none.

    >>> bounds((None, None)) is None
    True
    """
    if interval is None or interval[0] is None or interval[1] is None:
        return None
    return interval[0], interval[1]


def digits(value: float | None) -> int:
    """Decimals that give a latency about three significant figures.

    >>> [digits(v) for v in (5.4, 16.2, 240.0)]
    [2, 1, 0]
    """
    return 2 if value is None or value < 10 else 1 if value < 100 else 0


def lost(row: Row, baseline: Row) -> float | None:
    """Points of top-1 lost against the baseline; negative when gained."""
    if row.top1 is None or baseline.top1 is None:
        return None
    return round(baseline.top1 - row.top1, 6)  # 88.6 - 87.6 is a hair above 1 in binary


def headline(rows: Sequence[Row]) -> Headline:
    """Sum the rows up: the fastest that loses at most LOSS_LIMIT points, or plainly that there is none."""
    if len(rows) < 2:
        return Headline("Only the baseline was measured: there is nothing to compare it with.")
    base = rows[0]
    timed = [i for i in range(1, len(rows)) if rows[i].speedup is not None]
    if not timed:
        return _accuracy_only(rows)
    faster = [i for i in timed if _is_faster(rows[i])]
    if not faster:
        return _not_faster(rows, max(timed, key=lambda i: rows[i].speedup or 0.0))
    losses = {i: lost(rows[i], base) for i in faster}
    within = [i for i in faster if (loss := losses[i]) is not None and loss <= LOSS_LIMIT]
    unknown = [i for i in faster if losses[i] is None]
    if within or unknown:
        best = max(within or unknown, key=lambda i: rows[i].speedup or 0.0)
        text = f"{_faster(rows[best])}, {_loss(losses[best])}"
        return Headline(text, _detail(rows[best], base), best if within else None)
    best = min(faster, key=lambda i: losses[i] or 0.0)
    return Headline(
        f"Faster only beyond {LOSS_LIMIT:g} point of loss: {_faster(rows[best])}, {_loss(losses[best])}",
        _detail(rows[best], base),
    )


def chosen(rows: Sequence[Row], row: int, tag: str) -> Headline:
    """The sentence for a row that something else has chosen, as `edgevit tune` its winner."""
    if row == 0:
        return Headline("Nothing better than the baseline was found")
    if not _is_faster(rows[row]):
        return replace(_not_faster([rows[0], rows[row]], 1), row=row, tag=tag)
    text = f"{_faster(rows[row])}, {_loss(lost(rows[row], rows[0]))}"
    return Headline(text, _detail(rows[row], rows[0]), row, tag)


def _accuracy_only(rows: Sequence[Row]) -> Headline:
    known = {i: loss for i in range(1, len(rows)) if (loss := lost(rows[i], rows[0])) is not None}
    if not known:
        return Headline("No speedup and no accuracy was measured.")
    best = min(known, key=lambda i: known[i])
    return Headline(f"Speed was not measured; {_loss(known[best])}", _detail(rows[best], rows[0]))


def _not_faster(rows: Sequence[Row], best: int) -> Headline:
    """Slower, or too close to call: say which, with the number."""
    row = rows[best]
    speedup = row.speedup or 0.0
    ends = bounds(row.speedup_ci95)
    where = f"the best of {len(rows) - 1}" if len(rows) > 2 else row.name
    if ends and ends[1] > 1 > ends[0]:
        text = f"No speedup could be shown: {where} runs at {speedup:.2f}x{_between(row)}, which includes 1"
    else:
        text = f"Nothing here is faster than the baseline: {where} runs at {speedup:.2f}x{_between(row)}"
    return Headline(text, _detail(row, rows[0]))


def _detail(row: Row, base: Row) -> str:
    """The row by name, and its figures beside the baseline's."""
    parts = []
    if row.median_ms is not None and base.median_ms is not None:
        parts.append(f"{_ms(base.median_ms)} → {_ms(row.median_ms)} ms")
    if row.top1 is not None and base.top1 is not None:
        images = f" on {row.images} images" if row.images else ""
        parts.append(f"top-1 {base.top1:.1f} → {row.top1:.1f} %{images}{_paired(row)}")
    figures = "; ".join(parts)
    return f"{row.name} against {base.name}: {figures}" if figures else f"{row.name} against {base.name}"


def _paired(row: Row) -> str:
    """One standard error of the difference, from the paired flips: far tighter than the two accuracies' own.

    The per-image difference is -1, 0 or +1, so its variance is (lost + won)/n - ((lost - won)/n)².
    """
    if not row.images or row.flips_lost is None or row.flips_won is None:
        return ""
    moved, net = (row.flips_lost + row.flips_won) / row.images, (row.flips_lost - row.flips_won) / row.images
    error = 100 * math.sqrt(max(moved - net * net, 0.0) / row.images)
    return f" ({row.flips_lost} lost, {row.flips_won} won: difference ± {error:.1f} points)"


def _is_faster(row: Row) -> bool:
    """Faster beyond chance where an interval says so, else by its ratio alone."""
    ends = bounds(row.speedup_ci95)
    return (ends[0] if ends else row.speedup or 0.0) > 1


def _faster(row: Row) -> str:
    speedup = row.speedup or 0.0
    return f"{speedup:.{_ratio_digits(speedup)}f}x faster{_between(row) or ' (no interval)'}"


def _between(row: Row) -> str:
    text = _range(row.speedup_ci95, _ratio_digits(row.speedup or 0.0))
    return f" ({text})" if text else ""


def _ratio_digits(ratio: float) -> int:
    return 1 if ratio >= 2 else 2


def _loss(points: float | None) -> str:
    if points is None:
        return "accuracy not measured"
    if abs(points) < 0.05:
        return "no accuracy lost"
    return f"{abs(points):.1f} points {'lost' if points > 0 else 'gained'}"


def _accuracy(row: Row) -> str:
    if row.top1 is None:
        return DASH
    return f"{row.top1:.1f}" if row.top1_se is None else f"{row.top1:.1f} ± {row.top1_se:.1f}"


def _ms(value: float | None) -> str:
    return DASH if value is None else f"{value:.{digits(value)}f}"


def _speedup(row: Row) -> Cell:
    if row.speedup is None:
        return Cell(DASH)
    places = _ratio_digits(row.speedup)
    return Cell(f"{row.speedup:.{places}f}x", _range(row.speedup_ci95, places))


def _range(interval: Interval, places: int) -> str:
    ends = bounds(interval)
    return f"{ends[0]:.{places}f} to {ends[1]:.{places}f}" if ends else ""

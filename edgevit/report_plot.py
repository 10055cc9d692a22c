"""Latency against accuracy as SVG: a marker per row that has both, error bars, labels that keep apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgevit.report_rows import Row, bounds, cells
from edgevit.report_style import PLOT

LEFT, RIGHT, TOP, BOTTOM = 60, 16, 14, 46
FONT, GLYPH = (
    12.5,
    7.4,
)  # pixels: font size, and the mean width of a letter in a wide font, so on the safe side


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box that is nearest to another point."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)

    def distance(self, x: float, y: float) -> float:
        """From a point to the box."""
        return math.dist((x, y), self.nearest(x, y))


@dataclass(frozen=True)
class Axis:
    """A linear scale from `[low, high]` to pixels, with round tick values."""

    low: float
    high: float
    first: float
    last: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)


@dataclass(frozen=True)
class Point:
    """One row on the page, in pixels; `across` and `upright` are its error bars of latency and accuracy."""

    row: Row
    x: float
    y: float
    across: Box | None
    upright: Box | None
    kind: str  # CSS class: ev-base, ev-pick or ev-row
    label: str

    @property
    def bars(self) -> tuple[Box, ...]:
        """The error bars there are."""
        return tuple(bar for bar in (self.across, self.upright) if bar)

    @property
    def marker(self) -> Box:
        """The square around the marker."""
        return Box(self.x - 7, self.y - 7, self.x + 7, self.y + 7)


def plot_svg(rows: Sequence[Row], pick: int | None = None, width: int = 960, height: int = 440) -> str:
    """The plot as one `<svg>` element with its own style; empty when no row has both latency and top-1.

    pick: the row to point out.
    """
    measured = [(i, row) for i, row in enumerate(rows) if row.median_ms is not None and row.top1 is not None]
    if not measured:
        return ""
    x, y = _axes([row for _, row in measured], width, height)
    points = _points(measured, pick, x, y, longest=int((width - LEFT - RIGHT) * 0.62 / GLYPH))
    parts = [f"<style>{PLOT}</style>", f'<rect class="ev-back" width="{width}" height="{height}"/>']
    parts += _frame(x, y, width, height)
    base = next((p for p in points if p.kind == "ev-base"), None)
    if base:
        parts.append(line("ev-guide", base.x, TOP, base.x, height - BOTTOM))
        parts.append(line("ev-guide", LEFT, base.y, width - RIGHT, base.y))
    labels = _place(points, Box(LEFT + 2, TOP - 6, width - 2, height - BOTTOM - 2))
    parts += [_mark(point) for point in points]
    parts += [_label(point, box) for point, box in zip(points, labels, strict=True)]
    names = escape(", ".join(point.row.name for point in points))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="ev-plot" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" aria-label="Latency against top-1 accuracy: {names}">'
        + "".join(parts)
        + "</svg>"
    )


def _axes(rows: Sequence[Row], width: int, height: int) -> tuple[Axis, Axis]:
    """Latency from 0 unless all rows are close together; accuracy over the error bars."""
    low, high = _reach([(row.median_ms or 0.0, bounds(row.ci95_ms)) for row in rows])
    pad = 0.08 * (high - low) or 0.1 * high
    start = 0.0 if low <= 0.6 * high else low - pad
    x = axis(start, high + pad, LEFT, width - RIGHT, most=max(4, min(width // 70, 10)))
    spread = [(row.top1 or 0.0, row.top1_se or 0.0) for row in rows]
    low, high = min(v - se for v, se in spread), max(v + se for v, se in spread)
    pad = max(0.08 * (high - low), (1 - (high - low)) / 2)  # never zoom in below one point
    return x, axis(max(low - pad, 0.0), min(high + pad, 100.0), height - BOTTOM, TOP, most=7)


def _reach(values: Sequence[tuple[float, tuple[float, float] | None]]) -> tuple[float, float]:
    """From the lowest to the highest end of all intervals."""
    ends = [interval or (value, value) for value, interval in values]
    return min(low for low, _ in ends), max(high for _, high in ends)


def axis(low: float, high: float, first: float, last: float, most: int) -> Axis:
    """Ticks at 1, 2, 2.5 or 5 times a power of ten, `most` of them at the most."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * power for m in (1, 2, 2.5, 5, 10, 20) if (high - low) / (m * power) <= most)
    count = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return Axis(low, high, first, last, tuple(round(i * step, 9) for i in count))


def _points(measured: Sequence[tuple[int, Row]], pick: int | None, x: Axis, y: Axis, longest: int) -> list[Point]:
    points = []
    for index, row in measured:
        here_x, here_y = x.at(row.median_ms or 0.0), y.at(row.top1 or 0.0)
        ends, error = bounds(row.ci95_ms), row.top1_se or 0.0
        across = Box(x.at(ends[0]), here_y - 1, x.at(ends[1]), here_y + 1) if ends else None
        top, bottom = (
            y.at(min((row.top1 or 0.0) + error, y.high)),
            y.at(max((row.top1 or 0.0) - error, y.low)),
        )
        upright = Box(here_x - 1, top, here_x + 1, bottom) if error else None
        kind = "ev-base" if index == 0 else "ev-pick" if index == pick else "ev-row"
        name = f"{row.name} (baseline)" if index == 0 and "baseline" not in row.name else row.name
        label = name if len(name) <= longest else name[: longest - 1] + "…"
        points.append(Point(row, here_x, here_y, across, upright, kind, label))
    return points


def _place(points: Sequence[Point], page: Box) -> list[Box]:
    """Put each label where it covers least, near its marker; greedily, from the left."""
    placed: dict[int, Box] = {}
    for index in sorted(range(len(points)), key=lambda i: (points[i].x, points[i].y)):
        taken = list(placed.values())
        prices = [(price + _cost(box, index, taken, points, page), box) for price, box in _tries(points[index])]
        placed[index] = min(prices, key=lambda priced: priced[0])[1]
    return [placed[i] for i in range(len(points))]


def _tries(point: Point) -> list[tuple[float, Box]]:
    """Places around a marker, each with its price in distance; right and above are read most easily."""
    wide, tall = len(point.label) * GLYPH * (1.1 if point.kind == "ev-pick" else 1), FONT + 3
    tries = []
    for away in (10, 20, 34, 50, 70, 95):
        slant = away * 0.75
        corners = (
            (point.x + away, point.y - tall / 2),
            (point.x + slant, point.y - slant - tall / 2),
            (point.x + slant, point.y + slant - tall / 2),
            (point.x - wide / 2, point.y - away - tall),
            (point.x - wide / 2, point.y + away),
            (point.x - away - wide, point.y - tall / 2),
            (point.x - slant - wide, point.y - slant - tall / 2),
            (point.x - slant - wide, point.y + slant - tall / 2),
        )
        for order, (left, top) in enumerate(corners):
            tries.append((away + 0.5 * order, Box(left, top, left + wide, top + tall)))
    return tries


def _cost(box: Box, own: int, taken: Sequence[Box], points: Sequence[Point], page: Box) -> float:
    """Off the page is worst, then other labels, markers, error bars; last, a stranger's marker close by."""
    area = (box.right - box.left) * (box.bottom - box.top)
    cost = 1000 * (area - box.overlap(page)) + 100 * sum(box.overlap(other) for other in taken)
    cost += 20 * sum(box.overlap(point.marker) for point in points)
    cost += 2 * sum(box.overlap(bar) for point in points for bar in point.bars)
    reach = box.distance(points[own].x, points[own].y) + 6
    others = (box.distance(p.x, p.y) for i, p in enumerate(points) if i != own)
    return cost + 4 * sum(max(reach - distance, 0.0) for distance in others)


def _frame(x: Axis, y: Axis, width: int, height: int) -> list[str]:
    floor = height - BOTTOM
    parts = []
    for tick in x.ticks:
        parts.append(line("ev-grid", x.at(tick), TOP, x.at(tick), floor))
        parts.append(f'<text x="{x.at(tick):.1f}" y="{floor + 17}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks:
        parts.append(line("ev-grid", LEFT, y.at(tick), width - RIGHT, y.at(tick)))
        parts.append(f'<text x="{LEFT - 7}" y="{y.at(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle, centre = (LEFT + width - RIGHT) / 2, (TOP + floor) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 8}" text-anchor="middle">latency, ms (left is faster)</text>')
    parts.append(f'<text transform="translate(13 {centre:.0f}) rotate(-90)" text-anchor="middle">top-1, %</text>')
    return parts


def _mark(point: Point) -> str:
    """Error bars and marker, with the row's figures as hover text."""
    bars = ""
    if bar := point.across:
        ends = f"M{bar.left:.1f} {point.y - 4:.1f}v8M{bar.right:.1f} {point.y - 4:.1f}v8"
        bars += f'<path class="ev-bar" d="M{bar.left:.1f} {point.y:.1f}H{bar.right:.1f}{ends}"/>'
    if bar := point.upright:
        ends = f"M{point.x - 4:.1f} {bar.top:.1f}h8M{point.x - 4:.1f} {bar.bottom:.1f}h8"
        bars += f'<path class="ev-bar" d="M{point.x:.1f} {bar.top:.1f}V{bar.bottom:.1f}{ends}"/>'
    if point.kind == "ev-base":
        shape = f'<rect class="ev-marker" x="{point.x - 5:.1f}" y="{point.y - 5:.1f}" width="10" height="10"/>'
    else:
        radius = 7 if point.kind == "ev-pick" else 5.5
        shape = f'<circle class="ev-marker" cx="{point.x:.1f}" cy="{point.y:.1f}" r="{radius}"/>'
    return f'<g class="{point.kind}"><title>{escape(_hover(point))}</title>{bars}{shape}</g>'


def _hover(point: Point) -> str:
    name, top1, _, _, latency, speedup, *_ = cells(point.row, baseline=point.kind == "ev-base")
    interval = f" ({latency.detail})" if latency.detail else ""
    return f"{name.value}\n{name.detail}\n{latency.value} ms{interval}, {speedup.value}\ntop-1 {top1.value} %"


def _label(point: Point, box: Box) -> str:
    """The name, tied to its marker by a line when it had to move away."""
    leader = ""
    if box.distance(point.x, point.y) > 18:
        leader = line("ev-leader", point.x, point.y, *box.nearest(point.x, point.y))
    strong = " ev-strong" if point.kind == "ev-pick" else ""
    middle, base = (box.left + box.right) / 2, box.bottom - 4
    if box.left >= point.x:
        at, anchor = box.left, "start"
    elif box.right <= point.x:
        at, anchor = box.right, "end"
    else:
        at, anchor = middle, "middle"
    text = f'<text class="ev-label{strong}" x="{at:.1f}" y="{base:.1f}" text-anchor="{anchor}">'
    return f"{leader}{text}{escape(point.label)}</text>"


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """An SVG line of one of the style sheet's classes, in pixels."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'

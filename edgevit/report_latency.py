"""Where the samples of each bundle lie, as SVG: a strip a bundle, and the median of each of its rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import median

from edgevit.devices.stats import percentile
from edgevit.report_plot import FONT, GLYPH, Axis, axis, line
from edgevit.report_rows import digits
from edgevit.report_style import PLOT

LEFT, RIGHT, TOP, BOTTOM = 16, 24, 8, 44
STRIP = 58
"""Pixels of one bundle: its name above, its strip below."""
SHARES = (5, 25, 50, 75, 95)
"""Percentiles of a strip: ends of the line, of the box, and its middle."""


def spread(rounds: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The percentiles `SHARES` over the samples of all rounds."""
    pooled = [value for samples in rounds for value in samples]
    return tuple(percentile(pooled, share) for share in SHARES)


def latency_svg(samples: Mapping[str, Sequence[Sequence[float]]], width: int = 960) -> str:
    """One `<svg>`. samples: bundle → a list for each round, in milliseconds."""
    names = [name for name, rounds in samples.items() if any(rounds)]
    if not names:
        return ""
    medians = {name: [median(values) for values in samples[name] if values] for name in names}
    spreads = {name: spread(samples[name]) for name in names}
    ends = [v for name in names for v in (*medians[name], *spreads[name])]
    height = TOP + STRIP * len(names) + BOTTOM
    x = axis(0.0, max(ends) * 1.03, LEFT, width - RIGHT, most=max(4, width // 90))
    parts = [f"<style>{PLOT}</style>", f'<rect class="ev-back" width="{width}" height="{height}"/>']
    for tick in x.ticks:
        parts.append(line("ev-grid", x.at(tick), TOP, x.at(tick), height - BOTTOM))
        parts.append(f'<text x="{x.at(tick):.1f}" y="{height - BOTTOM + 17}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{width / 2:.0f}" y="{height - 6}" text-anchor="middle">latency of one inference, ms</text>')
    for number, name in enumerate(names):
        kind = "ev-base" if number == 0 else "ev-row"
        strip = _strip(name, medians[name], spreads[name], x, TOP + STRIP * number, width)
        parts.append(f'<g class="{kind}">{strip}</g>')
    label = escape(f"Latency of every round: {', '.join(names)}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="ev-plot" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _strip(name: str, medians: Sequence[float], shares: tuple[float, ...], x: Axis, top: float, width: int) -> str:
    """Name, line from p5 to p95, box of the quartiles, a dot a round, the median of the medians."""
    middle, centre = top + 38, median(medians)
    longest = int((width - LEFT - RIGHT) / GLYPH)
    shown = name if len(name) <= longest else name[: longest - 1] + "…"
    places = digits(centre)
    said = f"{name}\nmedian of {len(medians)} rounds {centre:.{places}f} ms\n"
    said += f"p5 {shares[0]:.{places}f}, p95 {shares[-1]:.{places}f} ms"
    low, left, _, right, high = (x.at(value) for value in shares)
    parts = [f'<text class="ev-label" x="{LEFT}" y="{top + FONT + 4:.1f}">{escape(shown)}</text>']
    parts.append(f'<path class="ev-bar" d="M{low:.1f} {middle}H{high:.1f}"/>')
    parts.append(f'<rect class="ev-box" x="{left:.1f}" y="{middle - 9}" width="{right - left:.1f}" height="18"/>')
    parts += [f'<circle class="ev-round" cx="{x.at(value):.1f}" cy="{middle}" r="3"/>' for value in medians]
    parts.append(line("ev-median", x.at(centre), middle - 13, x.at(centre), middle + 13))
    return f"<title>{escape(said)}</title>{''.join(parts)}"

"""The plots of a report as PNG files, for slides and pull requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from edgevit.errors import missing_extra
from edgevit.files import whole
from edgevit.report_latency import spread
from edgevit.report_rows import Row, bounds

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE, OTHER = "#1b2027", "#2563c9"


def plots(rows: Sequence[Row], samples: Mapping[str, Sequence[Sequence[float]]]) -> Iterator[tuple[str, Any]]:
    """Name and matplotlib figure: `latency` of samples, `accuracy` where a row has both. Raises MissingExtra."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ModuleNotFoundError as error:
        raise missing_extra("report", error) from error

    if samples:
        figure = Figure(figsize=(9, 1.2 + 0.55 * len(samples)), dpi=150, layout="constrained")
        yield "latency", _latency(figure, samples)
    both = [row for row in rows if row.median_ms is not None and row.top1 is not None]
    if both:
        yield "accuracy", _accuracy(Figure(figsize=(9, 5), dpi=150, layout="constrained"), both)


def write_plots(folder: Path, rows: Sequence[Row], samples: Mapping[str, Sequence[Sequence[float]]]) -> list[Path]:
    """Write FOLDER/NAME.png. Raises MissingExtra, OSError."""
    written = []
    for name, figure in plots(rows, samples):
        path = folder / f"{name}.png"
        with whole(path) as beside:
            figure.savefig(beside, format="png")
        written.append(path)
    return written


def write_front(path: Path, rows: Sequence[Row]) -> None:
    """The figure `accuracy` alone, as `path`. Raises MissingExtra, OSError."""
    figure = dict(plots(rows, {}))["accuracy"]
    with whole(path) as beside:
        figure.savefig(beside, format="png")


def _latency(figure: Any, samples: Mapping[str, Sequence[Sequence[float]]]) -> Any:
    """As `edgevit.report_latency` draws it."""
    axes = figure.subplots()
    for place, rounds in enumerate(samples.values()):
        color = OTHER if place else BASE
        low, left, _, right, high = spread(rounds)
        medians = [median(values) for values in rounds]
        axes.plot([low, high], [place, place], color=color, alpha=0.5, linewidth=1.5)
        axes.barh(place, right - left, left=left, height=0.45, color=color, alpha=0.22)
        axes.plot(medians, [place] * len(medians), "o", color=color, markersize=4)
        axes.plot([median(medians)] * 2, [place - 0.33, place + 0.33], color=color, linewidth=2)
    axes.set_yticks(range(len(samples)), list(samples))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("latency of one inference, ms; a dot is the median of a round")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _accuracy(figure: Any, rows: Sequence[Row]) -> Any:
    """As `edgevit.report_plot` draws it."""
    axes = figure.subplots()
    for place, row in enumerate(rows):
        color, x = OTHER if place else BASE, row.median_ms or 0.0
        ends = bounds(row.ci95_ms) or (x, x)
        # The interval is of the median's mean, so it may lie beside the median.
        across = [[max(x - ends[0], 0.0)], [max(ends[1] - x, 0.0)]]
        axes.errorbar(x, row.top1, xerr=across, yerr=row.top1_se, fmt="o", color=color, capsize=3)
        axes.annotate(row.name, (x, row.top1), xytext=(6, 6), textcoords="offset points", fontsize=9)
    axes.set_xlabel("latency, ms (left is faster)")
    axes.set_ylabel("top-1, %")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure

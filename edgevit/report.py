"""What was measured, for people: an HTML page, a table for the terminal, a plot.

    html(title, rows, conditions, ...)   one self-contained page      (edgevit.report_page)
    plot_svg(rows, pick)                 latency against accuracy     (edgevit.report_plot)
    table(rows)                          the same columns by rich
    headline(rows)                       the sentence on top          (edgevit.report_rows)

The first row is the baseline; a value that was not measured prints as an en dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import BundleError
from edgevit.files import whole
from edgevit.report_page import html
from edgevit.report_plot import plot_svg
from edgevit.report_rows import COLUMNS, DASH, Headline, Row, cells, headline

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

__all__ = ["Headline", "Row", "headline", "html", "plot_svg", "table", "write_report"]


def table(rows: Sequence[Row]) -> Table:
    """The rows for the terminal."""
    from rich.table import Table
    from rich.text import Text

    pick = headline(rows).row
    out = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    out.add_column(COLUMNS[0].value, overflow="fold", min_width=16)
    for column in COLUMNS[1:]:
        out.add_column(f"{column.value}\n{column.detail}", justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        # Text, not markup: a name with brackets must print as it is.
        out.add_row(
            *(
                Text.assemble(cell.value, (f"\n{cell.detail.replace(' to ', DASH)}" if cell.detail else "", "dim"))
                for cell in cells(row, baseline=number == 0)
            ),
            style="bold" if number == pick else "",
        )
    return out


def write_report(
    path: Path,
    title: str,
    rows: Sequence[Row],
    conditions: Mapping[str, Any],
    pictures: Sequence[tuple[str, Image.Image]] = (),
    commands: Sequence[str] = (),
    notes: Sequence[str] = (),
    samples: Mapping[str, Sequence[Sequence[float]]] | None = None,
    said: Headline | None = None,
) -> Path:
    """Write the page to `path`, as `html` makes it. Raises BundleError when the place cannot be written."""
    text = html(title, rows, conditions, pictures, commands, notes, samples, said)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BundleError(f"the report {path} cannot be written: {error.strerror}") from error
    return path

"""The report as one HTML file: no script, no request; readable on a phone, on paper, light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from edgevit.report_latency import latency_svg
from edgevit.report_plot import plot_svg
from edgevit.report_rows import COLUMNS, DASH, Cell, Headline, Row, cells, headline
from edgevit.report_style import PAGE
from edgevit.version import __version__

if TYPE_CHECKING:
    from PIL import Image

# Nothing may be fetched, whatever a name or a note contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

LATENCY_TEXT = (
    "Latency is the time of one inference of the compiled model. Every round runs each model in a fresh "
    "process of its own, one at a time, and the models take turns from round to round; the figure is the "
    "median of the rounds' medians, with a 95 % interval over rounds. Speedup is the baseline's latency "
    "divided by the model's, within the same rounds."
)
ACCURACY_TEXT = (
    "Accuracy is measured on the compiled model, with the preprocessing it ships with, on the same images "
    "for every row; ± is one standard error. Agree is the share of images on which a model and the baseline "
    "predict the same class. Lost / won counts the images that only the baseline, or only the model, gets "
    "right: on the same images, chance moves a difference far less than the two ± suggest."
)
MACS_TEXT = "MACs are the multiply-accumulates of one image, attention included."


def html(
    title: str,
    rows: Sequence[Row],
    conditions: Mapping[str, Any],
    pictures: Sequence[tuple[str, Image.Image]] = (),
    commands: Sequence[str] = (),
    notes: Sequence[str] = (),
    samples: Mapping[str, Sequence[Sequence[float]]] | None = None,
    said: Headline | None = None,
) -> str:
    """The whole page. rows: the baseline first. pictures: (caption, picture). conditions may be nested.

    samples: name → a list of milliseconds for each round. said: where something else has chosen a row.
    """
    said = said or headline(rows)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="headline">{escape(said.text)}</p>',
        f'<p class="detail">{escape(said.detail)}</p>' if said.detail else "",
        _section("Results", _table(rows, said)),
        _section("Latency and accuracy", _plot(rows, said)),
        _section("Latency of every round", _latencies(samples or {})),
        _section("Tokens", "".join(_picture(caption, picture) for caption, picture in pictures)),
        _section("Notes", _list(notes)),
        _section("Conditions", _conditions(conditions)),
        _section("How it was measured", _method(rows)),
        _section("Reproduce", f"<pre><code>{escape(chr(10).join(commands))}</code></pre>" if commands else ""),
        f"<footer>edgevit {escape(__version__)}</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{PAGE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _section(name: str, content: str) -> str:
    return f"<section><h2>{name}</h2>{content}</section>" if content else ""


def _table(rows: Sequence[Row], said: Headline) -> str:
    """On a phone every row is laid out as a card; the roles keep it a table for screen readers."""
    head = "".join(f'<th role="columnheader" scope="col">{_cell(column)}</th>' for column in COLUMNS)
    body = "".join(_table_row(row, i == 0, said.tag if i == said.row else "") for i, row in enumerate(rows))
    return (
        '<div class="scroll" role="region" aria-label="Results" tabindex="0"><table role="table">'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead><tbody role="rowgroup">{body}</tbody>'
        "</table></div>"
    )


def _table_row(row: Row, baseline: bool, won_as: str) -> str:
    name, *values = cells(row, baseline)
    tag = f'<span class="tag">{escape(won_as)}</span>' if won_as else ""
    bundle = f"<small>{escape(row.bundle)}</small>" if row.bundle not in ("", row.name) else ""
    first = f'<th role="rowheader" scope="row">{_cell(name)}{bundle}{tag}</th>'
    rest = "".join(
        f'<td role="cell" data-label="{escape(_title(column))}">{_cell(value)}</td>'
        for column, value in zip(COLUMNS[1:], values, strict=True)
    )
    kind = ' class="pick"' if won_as else ""
    return f'<tr role="row"{kind}>{first}{rest}</tr>'


def _title(column: Cell) -> str:
    return f"{column.value}, {column.detail}" if column.detail else column.value


def _cell(cell: Cell) -> str:
    return escape(cell.value) + (f"<small>{escape(cell.detail)}</small>" if cell.detail else "")


def _plot(rows: Sequence[Row], said: Headline) -> str:
    """Drawn twice, because letters in a scaled-down plot are too small to read on a phone."""
    wide = plot_svg(rows, said.row)
    if not wide:
        return ""
    narrow = plot_svg(rows, said.row, width=360, height=330)
    bars = "Bars: 95 % interval of the latency, one standard error of the accuracy."
    return (
        f'<figure><div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
        f"<figcaption>Up and to the left is better. {bars}</figcaption></figure>"
    )


def _latencies(samples: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Drawn twice, as the other plot."""
    wide = latency_svg(samples)
    if not wide:
        return ""
    said = "A dot is the median of one round; box: the middle half of all samples, line: 5th to 95th percentile."
    return (
        f'<figure><div class="wide">{wide}</div><div class="narrow">{latency_svg(samples, width=360)}</div>'
        f"<figcaption>{said}</figcaption></figure>"
    )


def _picture(caption: str, picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    image = (
        f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}" width="{picture.width}" '
        f'height="{picture.height}">'
    )
    below = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure><div class="picture scroll">{image}</div>{below}</figure>'


def _list(notes: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def _conditions(conditions: Mapping[str, Any]) -> str:
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _flat(conditions))
    return f"<dl>{pairs}</dl>" if pairs else ""


def _flat(conditions: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings become `outer inner` names; underscores become spaces."""
    for key, value in conditions.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, _plain(value)


def _plain(value: Any) -> str:
    """One condition's value as a person writes it."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_plain(v) for v in value) or DASH
    return str(value)


def _method(rows: Sequence[Row]) -> str:
    """Only what was measured is explained."""
    texts = []
    if any(row.median_ms is not None for row in rows):
        texts.append(LATENCY_TEXT)
    if any(row.top1 is not None for row in rows):
        texts.append(ACCURACY_TEXT)
    if any(row.macs is not None for row in rows):
        texts.append(MACS_TEXT)
    return "".join(f"<p>{escape(text)}</p>" for text in texts)

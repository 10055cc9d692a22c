"""Tests of the report: its words, its table, its plot, its file."""

import dataclasses
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from PIL import Image
from rich.console import Console

from edgevit.errors import BundleError
from edgevit.report import Headline, Row, headline, html, plot_svg, table, write_report
from edgevit.report_plot import LEFT, Box, _axes, _place, _points
from edgevit.report_rows import DASH, chosen

DENSE = Row(
    "dense", "out/dense", "ort", "fp32", "none", 88.6, 1.1, 800, median_ms=16.2, ci95_ms=(15.8, 16.7),
    size_bytes=22_900_000, macs=1_258_000_000,
)  # fmt: skip
REDUCED = Row(
    "reduced int8", "out/reduced", "openvino", "int8", "tome:r=60/40@5,9", 88.0, 1.1, 800, 95.6, 13, 8,
    5.6, (5.4, 5.8), 2.9, (2.7, 3.1), 6_100_000, 918_000_000,
)  # fmt: skip
LOSSY = dataclasses.replace(REDUCED, name="evit", top1=84.0, median_ms=5.1, speedup=3.2, speedup_ci95=(3.0, 3.4))
SLOWER = dataclasses.replace(
    DENSE,
    name="web",
    target="web",
    median_ms=22.0,
    ci95_ms=(21.0, 23.0),
    speedup=0.74,
    speedup_ci95=(0.70, 0.78),
)
UNMEASURED = Row("phone", "out/phone", "coreml", "fp16", "none")
ROWS = [DENSE, REDUCED, LOSSY, SLOWER, UNMEASURED]

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects them and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def test_headline_takes_the_fastest_within_a_point():
    said = headline(ROWS)
    assert said.text == "2.9x faster (2.7 to 3.1), 0.6 points lost"
    assert said.row == 1
    assert "reduced int8 against dense: 16.2 → 5.60 ms" in said.detail
    # sqrt((13 + 8) - 25/800) / 800 = 0.57 %
    assert "13 lost, 8 won: difference ± 0.6 points" in said.detail


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (SLOWER, "Nothing here is faster than the baseline: web runs at 0.74x (0.70 to 0.78)"),
        (
            dataclasses.replace(SLOWER, speedup=1.02, speedup_ci95=(0.97, 1.07)),
            "No speedup could be shown: web runs at 1.02x (0.97 to 1.07), which includes 1",
        ),
        (LOSSY, "Faster only beyond 1 point of loss: 3.2x faster (3.0 to 3.4), 4.6 points lost"),
        (dataclasses.replace(REDUCED, top1=None), "2.9x faster (2.7 to 3.1), accuracy not measured"),
        (dataclasses.replace(REDUCED, top1=88.62), "2.9x faster (2.7 to 3.1), no accuracy lost"),
        (dataclasses.replace(REDUCED, top1=88.9), "2.9x faster (2.7 to 3.1), 0.3 points gained"),
        (
            dataclasses.replace(REDUCED, speedup_ci95=(None, None)),
            "2.9x faster (no interval), 0.6 points lost",
        ),
        (dataclasses.replace(REDUCED, speedup=None), "Speed was not measured; 0.6 points lost"),
        (UNMEASURED, "No speedup and no accuracy was measured."),
    ],
)
def test_headline_is_honest(row, text):
    assert headline([DENSE, row]).text == text


def test_headline_never_points_out_a_row_that_did_not_win():
    assert headline([DENSE, SLOWER]).row is None
    assert headline([DENSE, LOSSY]).row is None
    assert headline([DENSE]).text.startswith("Only the baseline")
    exactly = dataclasses.replace(REDUCED, top1=87.6)  # 88.6 - 87.6 exceeds 1 in binary
    assert headline([DENSE, exactly]).row == 1


def test_page_is_complete_and_asks_nobody_for_anything():
    text = html(
        "ViT on a box",
        ROWS,
        {"device": {"name": "box", "cpu_cores": 2}, "governor": None, "locked": False, "load": [0.1, 0.25]},
        [("two merges", Image.new("RGB", (30, 20)))],
        ["edgevit export vit.safetensors --target ort", "edgevit profile out/*"],
        ["one layer stays in float"],
    )
    page = Page(text)
    words = " ".join(page.words)
    for row in ROWS:
        assert row.name in words
        assert row.bundle in words
    expected = ["2.9x faster (2.7 to 3.1), 0.6 points lost", "device cpu cores", "two merges", "0.1, 0.25"]
    expected += ["edgevit profile out/*", "one layer stays in float", "15.8 to 16.7", "13 / 8"]
    for text_part in expected:
        assert text_part in words
    assert page.tags.count("tr") == 1 + len(ROWS)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert len(page.links) == 1
    assert page.links[0].startswith("data:image/png;base64,")
    assert "url(" not in text
    assert "@import" not in text
    assert re.findall(r"https?://[^\"']*", text.replace('xmlns="http://www.w3.org/2000/svg"', "")) == []


def test_everything_is_escaped():
    bad = "<script>\"&'</script>"
    row = Row(bad, bad, bad, bad, bad, 88.0, 1.0, 10, median_ms=3.0, speedup=2.0)
    text = html(bad, [DENSE, row], {bad: {bad: bad}}, [(bad, Image.new("RGB", (2, 2)))], [bad], [bad])
    assert "<script" not in text
    assert "\"&'" not in text
    assert bad in " ".join(Page(text).words)


def test_what_was_not_measured_is_a_dash():
    text = html("empty", [UNMEASURED, UNMEASURED], {"governor": None})
    words = Page(text).words
    assert words.count(DASH) == 6 + 7 + 1  # six values of the baseline, seven of the row, the governor
    assert "<svg" not in text
    assert "How it was measured" not in text  # nothing was


def test_what_something_else_has_chosen_is_the_headline():
    said = chosen(ROWS, 2, "winner")
    assert (said.row, said.tag) == (2, "winner")
    assert said.detail.startswith(f"{ROWS[2].name} against {ROWS[0].name}: ")
    words = " ".join(Page(html("study", ROWS, {}, said=said)).words)
    assert said.text in words
    assert "winner" in words
    assert headline(ROWS).text not in words
    assert chosen(ROWS, 0, "winner") == Headline("Nothing better than the baseline was found")
    slower = chosen([DENSE, SLOWER], 1, "winner")
    assert slower.row == 1
    assert slower.text == headline([DENSE, SLOWER]).text


def test_plot_has_one_marker_per_measured_row():
    root = ET.fromstring(plot_svg(ROWS, pick=1))
    name = "{http://www.w3.org/2000/svg}"
    marks = [e for e in root.iter() if e.get("class") == "ev-marker"]
    assert [m.tag for m in marks] == [f"{name}rect", f"{name}circle", f"{name}circle", f"{name}circle"]
    groups = [g.get("class") for g in root.iter(f"{name}g")]
    assert groups == ["ev-base", "ev-pick", "ev-row", "ev-row"]
    titles = [t.text for t in root.iter(f"{name}title")]
    assert titles[1].startswith("reduced int8\n")
    assert "5.60 ms (5.40 to 5.80), 2.9x" in titles[1]
    assert len([e for e in root.iter() if e.get("class") == "ev-bar"]) == 8
    assert plot_svg([UNMEASURED]) == ""


def test_plot_survives_odd_numbers():
    alone = Row("alone", "b", "ort", "fp32", "none", top1=100.0, median_ms=3.0)
    long = dataclasses.replace(alone, name="x" * 300, top1=0.0, top1_se=2.0, ci95_ms=(None, None))
    for rows in ([alone], [alone, alone], [alone, long], [dataclasses.replace(alone, median_ms=0.0)]):
        root = ET.fromstring(plot_svg(rows, width=360, height=330))
        assert len([e for e in root.iter() if e.get("class") == "ev-marker"]) == len(rows)


@pytest.mark.parametrize(("width", "height"), [(960, 440), (360, 330)])
def test_labels_keep_apart(width, height):
    """Eight rows, five of them crowded within a millisecond and half a point."""
    spots = [
        (16.2, 88.6),
        (12.5, 88.5),
        (7.0, 88.3),
        (6.6, 88.2),
        (6.9, 87.9),
        (6.4, 88.1),
        (5.4, 87.9),
        (5.1, 84.0),
    ]
    rows = [dataclasses.replace(DENSE, name=f"variant {i}", median_ms=x, top1=y, ci95_ms=(x - 0.2, x + 0.2))
            for i, (x, y) in enumerate(spots)]  # fmt: skip
    x, y = _axes(rows, width, height)
    points = _points(list(enumerate(rows)), None, x, y, longest=40)
    boxes = _place(points, Box(LEFT, 0, width, height))
    for i, box in enumerate(boxes):
        assert box.left >= 0
        assert box.right <= width
        for other in boxes[i + 1 :]:
            assert box.overlap(other) == 0


def test_terminal_table_prints_names_as_they_are():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table([*ROWS, dataclasses.replace(SLOWER, name="[red]odd[/red]")]))
    text = console.export_text()
    console.file.close()
    for expected in ("dense", "[red]odd[/red]", "baseline", "tome:r=60/40@5,9", "88.0 ± 1.1", DASH):
        assert expected in text


def test_table_fits_eighty_columns():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(ROWS))
    text = console.export_text()
    console.file.close()
    assert "0.92" in text  # the last column
    assert max(len(line) for line in text.splitlines()) <= 80


def test_write_report_replaces_whole_files(tmp_path):
    path = tmp_path / "new" / "report.html"
    assert write_report(path, "first", ROWS, {}) == path
    write_report(path, "second", ROWS, {})
    assert "<title>second</title>" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(BundleError, match="cannot be written"):
        write_report(path / "below a file.html", "third", ROWS, {})

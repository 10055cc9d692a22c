"""`edgevit report`: from the history to the page, the CSV and the pictures."""

import csv
import io
import json
import tempfile
from statistics import median

import pytest
from PIL import Image

from edgevit import cli
from edgevit.devices import bench, history
from edgevit.devices.bench import BenchPlan
from edgevit.report_latency import latency_svg, spread

QUICK = BenchPlan(rounds=2, warmup_s=0, min_samples=70, min_seconds=0, max_seconds=1, threads=1)
ENGINE = {"target": "ort", "precision": "fp32", "schedule": "tome:r=8", "size_bytes": 4000, "macs": {"reduced": 9}}
ACCURACY = {
    "results": [{"bundle": "B", "images": 100, "top1": 80.0, "top1_se": 4.0}],
    "comparisons": [
        {"result": "B", "bundle": "A", "top1": 90.0, "agreement": 88.0, "flips_lost": 12, "flips_won": 2},
    ],
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A history, a lock and a working folder of the test's own."""
    monkeypatch.setenv("EDGEVIT_HOME", str(tmp_path / "home"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def saved(job):
    found = bench.profile([job("B")], job("A", 4.0), QUICK)
    return history.save(found, {"A": {**ENGINE, "schedule": "none"}, "B": ENGINE})


def test_the_newest_session_becomes_a_page_a_table_and_pictures(saved, tmp_path, capsys):
    (tmp_path / "accuracy.json").write_text(json.dumps(ACCURACY))
    assert cli.run(["report", "--eval", "accuracy.json", "--png", "-o", "out", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in said["rows"]] == ["A", "B"]  # the baseline is first
    lines = {row["name"]: row for row in csv.DictReader(io.StringIO((tmp_path / "out/report.csv").read_text()))}
    assert (lines["B"]["top1"], lines["A"]["top1"], lines["A"]["top1_se"]) == ("80.0", "90.0", "3.0")
    assert (lines["B"]["schedule"], lines["B"]["macs"], lines["B"]["flips_lost"]) == ("tome:r=8", "9", "12")
    samples = [
        s for one in history.session(saved)["rounds"] if one["bundle"] == "B" for s in [median(one["samples_ms"])]
    ]
    assert float(lines["B"]["median_ms"]) == pytest.approx(median(samples))
    page = (tmp_path / "out/report.html").read_text()
    assert "Latency of every round" in page
    assert "FAKE" in page  # fabricated samples never pass for a measurement
    for name in ("latency", "accuracy"):
        with Image.open(tmp_path / f"out/{name}.png") as picture:
            assert picture.width > 1000


def test_several_sessions_keep_their_rows_apart(saved, job, capsys):
    other = history.save(bench.profile([job("B")], None, QUICK), {"B": ENGINE})
    assert cli.run(["report", saved, other, "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert names == [f"{name} on local, {at}" for name, at in (("A", saved), ("B", saved), ("B", other))]


@pytest.mark.parametrize(
    ("text", "files", "why"),
    [
        ("{}", 1, "it is not what `edgevit eval --json` prints"),
        ("[", 1, "it is not what `edgevit eval --json` prints"),
        (json.dumps(ACCURACY), 2, "B is in another --eval file too"),
    ],
)
def test_an_accuracy_file_that_is_none_is_named(saved, tmp_path, capsys, text, files, why):
    names = [f"{number}.json" for number in range(files)]
    for name in names:
        (tmp_path / name).write_text(text.replace('"A"', f'"{name}"'))
    assert cli.run(["report", "--eval", *names]) == 1
    said = capsys.readouterr().err
    assert why in said
    assert names[-1] in said


def test_nothing_measured_is_said(capsys):
    assert cli.run(["report"]) == 1
    assert "nothing is measured yet" in capsys.readouterr().err


def test_the_strip_shows_what_was_sampled():
    rounds = [[float(v) for v in range(1, 101)], [float(v) for v in range(101, 201)]]
    assert spread(rounds) == (10.0, 50.0, 100.0, 150.0, 190.0)
    drawn = latency_svg({"<slow>": rounds})
    assert "&lt;slow&gt;" in drawn
    assert drawn.count('class="ev-round"') == 2
    assert latency_svg({"none": []}) == ""

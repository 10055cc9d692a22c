"""The history: what a session leaves in it, through several writers, killed ones, and a full disk."""

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from edgevit import cli
from edgevit.devices import bench, history
from edgevit.devices.bench import BenchPlan
from edgevit.devices.lines import unverified
from edgevit.errors import MeasureError
from tests.devices.bundles import bundle

QUICK = BenchPlan(rounds=2, warmup_s=0, min_samples=70, min_seconds=0, max_seconds=1, threads=1)
WRITER = """
import pickle, sys
from edgevit.devices import history
profile = pickle.load(open(sys.argv[1], "rb"))
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    print(history.save(profile, {}), flush=True)
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A history, and a lock, of the test's own."""
    monkeypatch.setenv("EDGEVIT_HOME", str(tmp_path / "home"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "home"


@pytest.fixture
def profile(job):
    return bench.profile([job("B")], job("A", 4.0), QUICK)


def writers(profile, folder, count, each):
    """Processes that write `each` sessions once a line comes."""
    import pickle

    (folder / "profile.pickle").write_bytes(pickle.dumps(profile))
    command = [sys.executable, "-c", WRITER, str(folder / "profile.pickle"), str(each)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    return [subprocess.Popen(command, **pipes) for _ in range(count)]


def test_a_session_is_kept_with_every_sample(profile):
    engine = {"sha256": "ab", "precision": "fp32"}
    name = history.save(profile, {"B": engine})
    found = history.session(name[:8])
    assert found["summary"] == json.loads(json.dumps(profile.to_json()))
    lines = found["rounds"]
    assert [line["bundle"] for line in lines] == ["A", "B", "B", "A"]
    assert [tuple(line["samples_ms"]) for line in lines] == [r.samples_ms for r in profile.measurement.rounds]
    line = lines[1]
    assert line["engine"]["sha256"] == "ab"
    assert line["engine"]["path"].endswith("B.engine")
    assert line["clocks"].keys() >= {"governor", "mhz", "locked", "power_mode"}
    assert line["input"]["shape"] == [1, 3, 8, 8]
    assert (line["block"], line["side"], line["round"], line["samples"], line["fake"]) == (0, "bundle", 1, 70, True)
    assert line["p90_ms"] > line["median_ms"]
    assert line["p99_ms"] is None  # 70 samples are too few
    assert "placement" in line["unverified"]  # the fake runtime does not say where it ran


def test_what_must_be_known_of_a_latency():
    line = {"device": {"cpu": "x"}, "clocks": {"mhz": None, "governor": "performance"}, "placement": ["CPU"]}
    assert unverified(line) == []
    assert unverified({**line, "clocks": {"mhz": None, "governor": None}}) == ["clocks"]
    assert unverified({**line, "device": {"cpu": "unknown"}, "placement": None}) == ["device", "placement"]


def test_writers_at_once_lose_nothing(profile, tmp_path):
    running = writers(profile, tmp_path, 4, 5)
    for writer in running:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    said = [writer.communicate(timeout=60) for writer in running]
    assert [err for _, err in said] == [b""] * 4
    names = sorted(line for out, _ in said for line in out.decode().split())
    assert len(names) == 20
    assert sorted(one["session"] for one in history.sessions()) == names
    assert all(len(history.session(name)["rounds"]) == 4 for name in names)


def test_a_killed_writer_leaves_whole_sessions(profile, tmp_path, home):
    (writer,) = writers(profile, tmp_path, 1, 100_000)
    writer.stdin.write(b"\n")
    writer.stdin.flush()
    said = [writer.stdout.readline().decode().strip() for _ in range(5)]
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=60)
    kept = [one["session"] for one in history.sessions()]
    assert kept[:5] == said
    with sqlite3.connect(history.store_path()) as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        counts = store.execute("SELECT count(number) FROM sessions LEFT JOIN rounds ON session = id GROUP BY id")
        assert {row[0] for row in counts} == {4}
    history.save(profile, {})


def test_a_full_disk_is_one_line_and_the_measurement_is_out(home, tmp_path, monkeypatch, capsys):
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "none", home], capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        check = history.check

        def check_then_fill():
            check()
            free = os.statvfs(home).f_bavail * os.statvfs(home).f_frsize
            (home / "ballast").write_bytes(bytes(max(0, free - 8192)))

        monkeypatch.setattr(history, "check", check_then_fill)  # the disk fills while it is measured
        assert cli.run(["profile", str(bundle(tmp_path / "one")), "--rounds", "1", "--json"]) == 1
        out, err = capsys.readouterr()
        assert json.loads(out)["results"][0]["samples"] >= 64
        assert "Traceback" not in err
        assert "the measurement is not in the history: " in err.splitlines()[-1]
        assert "free some space" in err.splitlines()[-1]
        (home / "ballast").unlink()
        assert history.sessions() == []
    finally:
        subprocess.run(["umount", home], check=True)


@pytest.mark.parametrize("what", ["no folder", "no database", "newer"])
def test_a_history_that_cannot_be_written_is_said_before_measuring(home, tmp_path, capsys, what):
    if what == "no folder":
        home.write_text("a file")
    else:
        history.check()
        if what == "newer":
            with sqlite3.connect(history.store_path()) as store:
                store.execute("PRAGMA user_version = 99")
        else:
            history.store_path().write_text("no database at all" * 99)
    one = str(bundle(tmp_path / "one"))
    start = time.monotonic()
    assert cli.run(["profile", one, "--rounds", "50"]) == 1
    assert time.monotonic() - start < 10  # fifty rounds would take a minute
    out, err = capsys.readouterr()
    assert out == ""
    advice = {"no folder": "set EDGEVIT_HOME", "no database": "move it away", "newer": "update edgevit"}[what]
    assert advice in err.splitlines()[-1]


def test_the_verb_lists_filters_and_shows(profile, job, capsys):
    first = history.save(profile, {})
    second = history.save(bench.profile([job("C")], None, QUICK), {})

    def run(*words, code=0):
        capsys.readouterr()
        assert cli.run(["history", *words]) == code
        return capsys.readouterr().out

    found = json.loads(run("--json"))
    assert [row["session"] for row in found["results"]] == [first, first, second]
    assert found["results"][1]["speedup"] == pytest.approx(profile.speedups()["B"].ratio)
    assert [r["bundle"] for r in json.loads(run("--bundle", "C", "--device", "local", "--json"))["results"]] == ["C"]
    table = list(csv.DictReader(io.StringIO(run("--csv"))))
    assert [row["bundle"] for row in table] == ["A", "B", "C"]
    assert float(table[2]["median_ms"]) > 0
    assert table[2]["speedup"] == ""
    assert "(FAKE)" in run()
    samples = list(csv.DictReader(io.StringIO(run(second, "--csv"))))
    assert len(samples) == 2 * 70
    assert len(json.loads(run(first, "--json"))["rounds"]) == 4
    assert first in run(first)


def test_an_empty_history_and_names_that_are_not_in_it(profile, capsys):
    assert cli.run(["history", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == []
    assert not history.store_path().exists()
    history.save(profile, {})
    history.save(profile, {})
    with pytest.raises(MeasureError, match=r"bundle 'BB' \(did you mean B\?\); measured are A, B"):
        history.sessions(bundle="BB")
    with pytest.raises(MeasureError, match=r"device 'orin'; measured are local"):
        history.sessions(device="orin")
    with pytest.raises(MeasureError, match="2 sessions begin with '2'; give more"):
        history.session("2")
    with pytest.raises(MeasureError, match="no session 'x'"):
        history.session("x")


@pytest.mark.slow
def test_no_history_leaves_none(tmp_path, capsys):
    one = str(bundle(tmp_path / "one"))
    assert cli.run(["profile", one, "--rounds", "1", "--no-history"]) == 0
    assert not Path(history.store_path()).exists()
    assert cli.run(["profile", one, "--rounds", "1"]) == 0
    (found,) = history.sessions(bundle="one")
    line = history.session(found["session"])["rounds"][0]
    assert line["engine"]["target"] == "ort"
    assert line["placement"] == ["CPUExecutionProvider"]

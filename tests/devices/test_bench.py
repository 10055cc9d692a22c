"""The interleaved benchmark, on the fake runner and on runners made here."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from edgevit.devices import bench
from edgevit.devices.bench import BenchPlan, Job
from edgevit.devices.lock import lock_path, session_lock
from edgevit.errors import MeasureError
from tests.conftest import heed_interrupts

QUICK = BenchPlan(rounds=2, warmup_s=0, min_samples=70, min_seconds=0, max_seconds=1, threads=1)


@pytest.fixture(autouse=True)
def own_temp(tmp_path, monkeypatch):
    """A lock and scratch place of this test's own: a real session may run on the machine."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def names(slots):
    return "".join(slot.job.bundle for slot in slots)


def test_order_against(job):
    a, b, c = job("A"), job("B"), job("C")
    assert names(bench.order([b], a, 4)) == "ABBAABBA"
    assert names(bench.order([b], a, 3)) == "ABBAAB"
    assert names(bench.order([b], a, 1)) == "AB"
    assert names(bench.order([b, c], a, 4)) == "ABBAACCAABBAACCA"
    assert [slot.side.block for slot in bench.order([b], a, 4)] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_order_alone(job):
    jobs = [job("A"), job("B"), job("C")]
    assert names(bench.order(jobs, None, 3)) == "ABCCBAABC"


def test_rounds_really_run_in_that_order(job):
    seen = []
    profile = bench.profile([job("B")], job("A", 4.0), QUICK, lambda *step: seen.append(step))
    assert [r.bundle for r in profile.measurement.rounds] == ["A", "B", "B", "A"]
    assert [r["job"]["round"] for r in profile.records] == [0, 1, 2, 3]
    assert seen == [("A", 0, 4), ("B", 1, 4), ("B", 2, 4), ("A", 3, 4), ("A", 4, 4)]


def test_summary_has_the_documented_keys(job):
    profile = bench.profile([job("B")], job("A", 4.0), BenchPlan(4, 0, 200, 0, 9))
    summary = json.loads(json.dumps(profile.to_json(), allow_nan=False))
    assert {"device", "conditions", "results", "speedup"} <= set(summary)
    rows = {row["bundle"]: row for row in summary["results"]}
    assert set(rows) == {"A", "B"}
    for row in rows.values():
        assert row["rounds"] == 4
        assert row["samples"] == 800
        assert row["ci95_ms"][0] <= row["median_ms"] <= row["ci95_ms"][1]
        assert row["median_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["peak_memory_bytes"] > 0
    ratio = summary["speedup"]["B"]["ratio"]
    assert ratio == pytest.approx(2.0, rel=0.05)
    assert summary["speedup"]["B"]["ci95"][0] <= ratio <= summary["speedup"]["B"]["ci95"][1]
    assert summary["speedup"]["B"]["noise_floor"] < 0.05
    assert summary["conditions"]["runtimes"] == {"fake": "0"}


def test_fake_is_said_everywhere(job, tmp_path):
    profile = bench.profile([job()], None, QUICK)
    summary = profile.to_json()
    assert summary["fake"] is True
    assert summary["conditions"]["fake"] is True
    assert summary["results"][0]["fake"] is True
    assert summary["notes"][0].startswith("FAKE")
    assert json.loads(bench.record(profile, tmp_path / "out").read_text())["raw"]["fake"] is True


def test_too_few_samples_are_null(job):
    profile = bench.profile([job()], None, BenchPlan(1, 0, 10, 0, 1))
    row = profile.to_json()["results"][0]
    assert row["samples"] == 10
    assert row["p90_ms"] is None
    assert row["p99_ms"] is None
    assert row["ci95_ms"] == [None, None]
    assert profile.to_json()["speedup"] == {}


def test_a_bundle_against_itself(job):
    a = job("A", jitter=0.01)
    summary = bench.profile([a], a, BenchPlan(12, 0, 70, 0, 1)).to_json()
    assert [row["bundle"] for row in summary["results"]] == ["A"]
    assert summary["results"][0]["rounds"] == 24
    found = summary["speedup"]["A"]
    assert found["ratio"] == pytest.approx(1.0, abs=0.02)
    assert found["ci95"][0] <= 1 <= found["ci95"][1]
    assert found["blocks"] == 6


def test_one_round_against(job):
    found = bench.profile([job("B")], job("A"), BenchPlan(1, 0, 10, 0, 1)).to_json()["speedup"]["B"]
    assert found["ci95"] == [None, None]
    assert found["noise_floor"] is None
    assert found["differs"] is None


def test_outliers_are_counted(job):
    row = bench.profile([job(slow_ms=50.0)], None, QUICK).to_json()["results"][0]
    assert row["outliers"] == 14
    assert row["max_ms"] > 50


def test_record_holds_every_raw_sample(job, tmp_path):
    profile = bench.profile([job()], None, QUICK)
    path = bench.record(profile, tmp_path / "new" / "folder")
    written = json.loads(path.read_text())
    assert [len(r["samples_ms"]) for r in written["raw"]["rounds"]] == [70, 70]
    assert written["results"] == profile.to_json()["results"]
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


def test_record_into_a_file_is_refused(job, tmp_path):
    profile = bench.profile([job()], None, QUICK)
    (tmp_path / "file").write_text("")
    with pytest.raises(MeasureError, match="choose another folder"):
        bench.record(profile, tmp_path / "file")


def test_a_dying_runner_names_the_bundle_and_its_last_line(job, script, own_temp):
    made = script("import sys\nprint('first', file=sys.stderr)\nsys.exit('the reason')\n")
    with pytest.raises(MeasureError, match=r"^B: runner 'made', round 1 of 2 failed \(exit status 1\): the reason$"):
        bench.profile([job("B", runner=made)], None, QUICK)
    assert not list(own_temp.iterdir())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", r"killed by SIGKILL; out of memory\?"),
        ("", "without a readable record"),
        (
            "import json, sys\no = json.load(open(sys.argv[1]))['out']\nopen(o, 'w').write('{}')",
            "its record lacks",
        ),
    ],
)
def test_other_ends_of_a_runner(job, script, text, match):
    with pytest.raises(MeasureError, match=match):
        bench.profile([job("B", runner=script(text))], None, QUICK)


def test_a_missing_engine(job):
    given = job("B")
    given.engine.unlink()
    with pytest.raises(MeasureError, match=r"B: .*does not exist"):
        bench.profile([given], None, QUICK)


def test_a_hanging_runner_is_stopped(job, script, monkeypatch):
    monkeypatch.setattr(bench, "LOAD_LIMIT_S", -1.5)
    with pytest.raises(MeasureError, match="no result after"):
        bench.profile([job(runner=script("import time\ntime.sleep(60)"))], None, QUICK)


def test_the_lock_refuses_a_second_session_by_pid(job):
    with session_lock(), pytest.raises(MeasureError, match=rf"process {os.getpid()}\)"):
        bench.profile([job()], None, QUICK)
    assert not lock_path().exists()
    bench.profile([job()], None, QUICK)


def test_a_stale_lock_file_refuses_nobody(job):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock_path().write_text(f"{ended.pid}\n")
    bench.profile([job()], None, QUICK)
    assert not lock_path().exists()


def test_an_interrupt_kills_the_runner_and_leaves_nothing(tmp_path, own_temp):
    runner = tmp_path / "runner_hang.py"
    pid_file = tmp_path / "pid"
    runner.write_text(f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    engine = tmp_path / "e"
    engine.write_text("x")
    main = (
        "from pathlib import Path\nfrom edgevit.devices import bench, plan\n"
        f"plan.RUNNERS['hang'] = Path({str(runner)!r})\n"
        f"bench.profile([bench.Job('b', 'hang', Path({str(engine)!r}))])\n"
    )
    environment = {
        **os.environ,
        "TMPDIR": str(own_temp),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    session = subprocess.Popen(
        [sys.executable, "-c", main], env=environment, stderr=subprocess.PIPE, preexec_fn=heed_interrupts
    )
    try:
        deadline = time.monotonic() + 60
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        session.send_signal(signal.SIGINT)  # to the parent alone: the child must be killed by it
        _, stderr = session.communicate(timeout=20)
    finally:
        session.kill()
    assert b"KeyboardInterrupt" in stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert not list(own_temp.iterdir())


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"min_samples": 0}, "min_samples=0"),
        ({"threads": 0}, "threads=0"),
        ({"warmup_s": -1}, "warmup_s=-1"),
        ({"min_seconds": float("nan")}, "min_seconds=nan"),
        ({"max_seconds": 0}, "max_seconds=0"),
        ({"max_seconds": 1, "min_seconds": 2}, "raise max_seconds"),
    ],
)
def test_plans_that_make_no_sense(values, match):
    with pytest.raises(MeasureError, match=match):
        BenchPlan(**values)


def test_jobs_that_make_no_sense(job, tmp_path):
    with pytest.raises(MeasureError, match="no runner 'trt'"):
        Job("b", "trt", tmp_path)
    with pytest.raises(MeasureError, match="positive"):
        Job("b", "fake", tmp_path, input_shape=(1, 0))
    with pytest.raises(MeasureError, match="at least one"):
        bench.profile([])
    with pytest.raises(MeasureError, match="given twice: A"):
        bench.profile([job("A"), job("A")])
    with pytest.raises(MeasureError, match="both called 'A'"):
        bench.profile([job("A")], job("A", 3.0))


def test_threads_come_from_the_plan_then_the_job_then_the_machine(job):
    two = bench._job_json(job(threads=2), BenchPlan(), 0, 3, "e")
    assert two["options"]["threads"] == 2
    assert bench._job_json(job(threads=2), BenchPlan(threads=1), 0, 3, "e")["options"]["threads"] == 1
    assert bench._job_json(job(), BenchPlan(), 0, 3, "e")["options"]["threads"] >= 1


def test_the_default_plan_gives_a_p99():
    default = BenchPlan()
    assert default.rounds * default.min_samples >= 662

"""Clocks and sensors on the loopback board, with stand-ins of a Jetson's tools: end to end, and through every fault."""

import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

from edgevit.devices import bench, config, plan, remote
from edgevit.devices.bench import BenchPlan, Job
from edgevit.devices.lock import session_lock
from edgevit.devices.plan import Setup
from edgevit.errors import MeasureError

FREE = "GPU MinFreq=306 MaxFreq=624 CurrentFreq=306\nEMC MinFreq=204 MaxFreq=2133 CurrentFreq=2133 FreqOverride=0\n"
LOCKED = "GPU MinFreq=624 MaxFreq=624 CurrentFreq=624\nEMC MinFreq=204 MaxFreq=2133 CurrentFreq=2133 FreqOverride=1\n"
TOOLS = {
    "sudo": 'shift\nexec "$@"\n',
    "jetson_clocks": (
        'cd "$(dirname "$0")"\ncase "$1" in\n  --show) cat clocks;;\n  --store) cp clocks "$2";;\n'
        "  --restore) [ -e stuck ] || cp \"$2\" clocks;;\n  '') cp locked clocks;;\nesac\n"
    ),
    "tegrastats": (
        "while :; do\n  echo 'RAM 100/7620MB (lfb 4x4MB) CPU [5%@729] cpu@50C/60C VDD_IN 5000mW/5000mW/5000mW'\n"
        "  sleep 0.1\ndone\n"
    ),
}
QUICK = BenchPlan(rounds=1, warmup_s=0, min_samples=5, min_seconds=1, max_seconds=5, threads=1)
LOCK = Setup({"clocks": "highest"}, collect=False)


@pytest.fixture
def jetson(board):
    """The loopback board with the stand-ins on its PATH."""
    for name, text in TOOLS.items():
        (board.bin / name).write_text(f"#!/bin/sh\n# edgevit: fake\n{text}")
        (board.bin / name).chmod(0o755)
    (board.bin / "clocks").write_text(FREE)
    (board.bin / "locked").write_text(LOCKED)
    return board


@pytest.fixture
def device(jetson):
    return config.make("jetson", jetson.table, "test")


@pytest.fixture
def job(tmp_path):
    (tmp_path / "b.engine").write_text("b")
    return Job("b", "fake", tmp_path / "b.engine", {}, "images", (1, 3, 8, 8))


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """A job whose runner tells its number and hangs, and the file with that number."""
    pid, part, engine = tmp_path / "pid", tmp_path / "pid.part", tmp_path / "h.engine"
    engine.write_text("h")
    (tmp_path / "runner_hang.py").write_text(
        f"import os, time\nopen({str(part)!r}, 'w').write(str(os.getpid()))\nos.rename({str(part)!r}, {str(pid)!r})\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setitem(plan.RUNNERS, "hang", tmp_path / "runner_hang.py")
    monkeypatch.setattr(remote, "ALONE", (*remote.ALONE, "hang"))
    return Job("h", "hang", engine, {}, "images", (1, 3, 8, 8)), pid


def clocks(board):
    return (board.bin / "clocks").read_text()


def wait_for(condition, limit_s=90.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_clocks_are_held_for_the_session_and_given_back(jetson, device, job):
    summary = bench.profile([job], None, QUICK, device=device, setup=LOCK).to_json()
    held = summary["conditions"]["held"]["jetson_clocks"]
    assert held["before"]["GPU"] == [306, 624, 306]
    assert held["held"]["GPU"] == [624, 624, 624]
    assert summary["conditions"]["restored"] == {"jetson_clocks": ""}
    assert clocks(jetson) == FREE
    assert list((jetson.folder / "work" / "guards").iterdir()) == []


@pytest.mark.slow
def test_a_stand_in_is_no_measurement(jetson, device, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for n in ("images", "y"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["images"], ["y"])], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    job = Job("relu", "ort", tmp_path / "m.onnx", {}, "images", (1, 3, 8, 8))
    found = bench.profile([job], None, QUICK, device=device, setup=Setup(idle_s=1.0))
    summary = found.to_json()
    assert summary["fake"] is True  # although the rounds are real: the power is not
    assert found.records[0]["fake_programs"] == ["tegrastats"]
    assert "tegrastats" in summary["conditions"]["collectors"]["used"]
    assert summary["conditions"]["idle_w"]["tegrastats"] == pytest.approx(5.0)
    row = summary["results"][0]
    seconds = found.records[0]["window_s"][1] - found.records[0]["window_s"][0]
    assert row["energy_mj"]["gross"] == pytest.approx(5e3 * seconds / row["samples"])
    assert row["energy_mj"]["net"] == pytest.approx(0, abs=1e-6)
    assert row["energy_mj"]["source"] == "tegrastats"
    assert row["temp_c_max"] >= 50


def test_a_dropped_link_restores_the_clocks(jetson, device, hanging):
    job, pid = hanging
    seen = []

    def cut():
        wait_for(pid.exists)
        seen.append(clocks(jetson))
        jetson.drop_links()

    cutter = threading.Thread(target=cut)
    cutter.start()
    with pytest.raises(MeasureError, match="the link to device jetson broke"):
        bench.profile([job], None, QUICK, device=device, setup=LOCK)
    cutter.join()
    assert seen == [LOCKED]
    wait_for(lambda: clocks(jetson) == FREE)


def test_a_session_that_is_killed_restores_the_clocks(jetson, device, hanging):
    job, pid = hanging

    def kill():
        wait_for(pid.exists)
        parent = Path(f"/proc/{pid.read_text()}/stat").read_text().rpartition(")")[2].split()[1]
        os.kill(int(parent), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(MeasureError, match="broke"):
        bench.profile([job], None, QUICK, device=device, setup=LOCK)
    killer.join()
    wait_for(lambda: clocks(jetson) == FREE)
    os.kill(int(pid.read_text()), signal.SIGKILL)  # orphaned by the kill above


def test_an_interrupt_restores_the_clocks_before_it_returns(jetson, device, hanging):
    job, pid = hanging

    def interrupt(*_):
        wait_for(pid.exists)
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0, lambda: (wait_for(pid.exists), os.kill(os.getpid(), signal.SIGUSR1)))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            bench.profile([job], None, QUICK, device=device, setup=LOCK)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, old)
    assert clocks(jetson) == FREE


def test_what_cannot_be_restored_is_said_and_tried_again(jetson, device, job):
    (jetson.bin / "stuck").touch()
    with pytest.raises(MeasureError, match=r"not as it was found \(jetson_clocks: other limits: GPU, EMC\)"):
        bench.profile([job], None, QUICK, device=device, setup=LOCK)
    (jetson.bin / "stuck").unlink()
    found = bench.profile([job], None, QUICK, device=device, setup=Setup(collect=False)).to_json()
    assert found["conditions"]["restored_first"] == {"jetson_clocks": ""}
    assert clocks(jetson) == FREE


def test_holding_clocks_of_this_machine_wants_a_device(job, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with session_lock(), pytest.raises(MeasureError, match="needs --device NAME"):  # said before the lock is asked for
        bench.profile([job], None, QUICK, setup=LOCK)


def test_the_record_survives_json(jetson, device, job, tmp_path):
    profile = bench.profile([job], None, QUICK, device=device, setup=LOCK)
    assert json.loads(bench.record(profile, tmp_path / "out").read_text())["raw"]["conditions"]["held"]

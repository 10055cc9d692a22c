"""The real runner for Android, built for this machine and run over a stand-in of adb, with both runtimes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from edgevit.bundle import Bundle
from edgevit.devices import lines
from edgevit.devices.app_project import write_program
from edgevit.devices.bench import BenchPlan
from edgevit.runtimes import runtime
from tests.devices.test_on_android import android, measure


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """The folder of a stand-in of adb."""
    return android(tmp_path, monkeypatch)


def built(folder: Path, *options: str) -> Path:
    """The real program, built and installed for this machine."""
    project = write_program(folder)
    steps = (["-B", "build", *options], ["--build", "build"], ["--install", "build", "--prefix", "phone"])
    for words in steps:
        done = subprocess.run(["cmake", *words], cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "warning:" not in done.stderr
    return project / "phone"


def exported(cli, module_file, folder: Path, target: str) -> Bundle:
    assert cli("export", module_file, "--trust-pickle", "--target", target, "-o", folder).code == 0
    return Bundle.load(folder)


def check_real(phone, runner, made: Bundle):
    """Measure with the real program: its outputs are the runtime's here, its samples its own."""
    plan = BenchPlan(rounds=2, warmup_s=0.1, min_samples=70, min_seconds=0.1, max_seconds=2, threads=1)
    found = measure(phone, runner, made, plan=plan)
    record = found.to_json()
    assert record["fake"] is True
    assert record["conditions"]["outputs"][made.name]["relative_diff"] < 1e-5  # two builds of one runtime, in float32
    for one, how in zip(found.measurement.rounds, found.records, strict=True):
        assert len(one.samples_ms) >= 70
        assert len(set(one.samples_ms)) > 10
        assert 0 < min(one.samples_ms) < one.load_ms
        assert how["load_memory_bytes"] <= one.peak_memory_bytes < 1 << 31
        assert how["baseline_memory_bytes"] < how["peak_memory_bytes"]
        assert (how["threads"], how["placement"], how["warmup"]["samples"] >= 5) == (1, ["CPU"], True)
    line = lines.lines(found, "s", "2026-01-01T00:00:00Z", {})[0]
    assert line["placement"] == ["CPU"]
    return found


def refused_by(runner: Path, name: str, folder: Path, job: bytes) -> dict:
    """The record that the real program leaves of a job that is none."""
    (folder / "job.json").write_bytes(job)
    done = subprocess.run([runner / name, "--job", folder / "job.json"], capture_output=True, check=False)
    record = json.loads((folder / "record.json").read_bytes())
    assert (done.returncode, record["schema"]) == (1, 1)
    return record


@pytest.mark.slow
@pytest.mark.skipif("ORT_ROOT" not in os.environ, reason="ORT_ROOT names no ONNX Runtime with headers")
def test_the_real_program_with_onnx_runtime(phone, tmp_path, cli, module_file):
    runner = built(tmp_path, f"-DORT_ROOT={os.environ['ORT_ROOT']}")
    check_real(phone, runner, exported(cli, module_file, tmp_path / "real", "ort"))
    (tmp_path / "alone").mkdir()
    for text, says in (
        (b"\xff", "not valid JSON"),
        (b"[" * 9999, "nested too deep"),
        (b'{"schema": 1, "id": "a\\u00e4\\"b", "kind": "x"}', "knows no job of kind x"),
        (b'{"schema": 0, "id": "a", "kind": "about"}', "another schema"),
        (b'{"schema": 1, "id": "a", "kind": "about"}', "job.json lacks trees"),
        (b'{"schema": 1, "id": "a", "kind": "check", "runner": "executorch"}', "this is the runner ort"),
        (
            b'{"schema": 1, "id": "a", "kind": "check", "runner": "ort", "input": {"shape": [1, 3]}}',
            "input.f32 cannot be",
        ),
    ):
        assert says in refused_by(runner, "runner_ort", tmp_path / "alone", text)["error"]


@pytest.mark.slow
def test_the_real_program_with_executorch(phone, tmp_path, cli, module_file):
    """The Python package has headers and libraries, for this machine."""
    package = pytest.importorskip("executorch")
    root = Path(next(iter(package.__path__)))
    if not (root / "lib/libexecutorch.so").exists():
        pytest.skip("this executorch has no libraries to link: it has from 1.5 on")
    runner = built(tmp_path, f"-DEXECUTORCH_ROOT={root}")
    made = exported(cli, module_file, tmp_path / "real", "executorch")
    found = check_real(phone, runner, made)
    assert found.records[0]["runtime_version"] == runtime("executorch").version()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/input.f32").write_bytes(bytes(12))
    text = (
        '{"schema": 1, "id": "a", "kind": "check", "runner": "executorch", "input": {"shape": [1, 3]}, "options": {}, '
    )
    for engine in (tmp_path / "none.pte", runner / "runner_executorch"):
        job = f'{text} "engine": "{engine}"}}'.encode()
        assert "ExecuTorch cannot load" in refused_by(runner, "runner_executorch", tmp_path / "alone", job)["error"]

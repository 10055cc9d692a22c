"""The command on a real engine: the embedded model, OpenVINO, the real runner."""

import json

import pytest

from edgevit.bundle import Bundle
from edgevit.devices.bench import BenchPlan


@pytest.mark.slow
def test_the_embedded_model_is_tuned_and_measured_for_openvino(cli, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    pytest.importorskip("optuna")
    short = BenchPlan(rounds=5, warmup_s=0, min_samples=8, min_seconds=0.1)
    monkeypatch.setattr("edgevit.tune.meter.SHORT", short)
    monkeypatch.setattr("edgevit.tune.meter.LONG", short)
    from edgevit.demo.scenes import write_images

    def few(table, count):
        """The first scenes: enough to see that the parts fit."""
        head = table.with_name(f"few_{table.name}")
        head.write_text("\n".join(table.read_text().splitlines()[: count + 1]))
        return head

    calib, evaluation = (
        few(table, count) for table, count in zip(write_images(tmp_path / "images"), (16, 120), strict=True)
    )
    result = cli(
        "tune", "demo", "--target", "openvino", "--calib", calib, "--eval", evaluation, "--max-drop", 5, "--trials", 2,
        "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    best = result.json["best"]
    assert best["schedule"] == "none"  # both trials keep every token
    assert result.json["fake"] is False
    bundle = Bundle.load(tmp_path / "study" / "winner")
    evidence = json.loads((bundle.folder / "report.json").read_text())["tune"]
    assert evidence["holdout"]["images"] == 60
    assert best["speedup_ci95"][0] <= best["speedup"] <= best["speedup_ci95"][1]
    assert {row["name"] for row in result.json["finalists"]} >= {f"dense {best['precision']}"}

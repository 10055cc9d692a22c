"""The command on a real engine: the embedded model, OpenVINO, the real runner."""

import json

import pytest

from edgevit.bundle import Bundle


@pytest.mark.slow
def test_the_embedded_model_is_tuned_and_measured_for_openvino(cli, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("optuna")
    from edgevit.demo.scenes import write_images

    calib, evaluation = write_images(tmp_path / "images")
    short = tmp_path / "short.csv"  # 120 scenes are enough to see that the parts fit
    short.write_text("\n".join(evaluation.read_text().splitlines()[:121]).replace("eval/", "images/eval/"))
    result = cli(
        "tune", "demo", "--target", "openvino", "--calib", calib, "--eval", short, "--max-drop", 5, "--trials", 2,
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

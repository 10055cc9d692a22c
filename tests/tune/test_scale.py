"""The simulation of a study on many machines gives what one can work out by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "scale.py"
sys.path.insert(0, str(SCRIPT.parent))

from scale import Plan, Trial, limits, scaled, simulate  # noqa: E402


def seconds(trials, nodes=1, boards=1, generation=100, shared_s=0.0) -> float:
    return round(3600 * simulate(Plan(tuple(trials), nodes, boards, generation, shared_s)).hours, 6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 8 * (10 + 5)),
        ({"nodes": 2, "boards": 2}, 4 * 15),
        ({"nodes": 8, "boards": 8}, 15),
        ({"nodes": 8, "boards": 1}, 10 + 8 * 5),  # all want the board at once
        ({"nodes": 8, "boards": 4}, 10 + 2 * 5),
        ({"nodes": 2, "boards": 1}, 10 + 5 + 5 + 3 * 15),  # from then on the two take turns and nobody waits
        ({"nodes": 8, "boards": 8, "generation": 4}, 2 * 15),
        ({"nodes": 8, "boards": 8, "generation": 3}, 3 * 15),
        ({"nodes": 4, "boards": 4, "shared_s": 100}, 2 * 15 + 25),
    ],
)
def test_eight_equal_trials(given, expected):
    assert seconds([Trial(10, 5)] * 8, **given) == expected


def test_a_generation_waits_for_its_longest_trial_and_one_that_ended_early_needs_no_board():
    trials = [Trial(10, 0), Trial(100, 0), Trial(10, 0), Trial(10, 0)]
    assert seconds(trials, nodes=2, generation=2) == 110
    assert seconds(trials, nodes=2) == 100
    found = simulate(Plan((Trial(10, 0), Trial(10, 20)), 2, 1, 2, 0))
    assert (found.workers, found.boards) == pytest.approx((20 / 60, 20 / 30))


@pytest.mark.parametrize(
    ("trials", "nodes", "boards", "generation", "expected"),
    [
        ([Trial(10, 1)] * 4, 1, 1, 4, "nodes (without: -68 %)"),  # 44 s → 10 + 4 on the one board
        ([Trial(1, 10)] * 4, 4, 1, 4, "boards (without: -73 %)"),  # 41 s → 11
        ([Trial(10, 1)] * 16, 16, 16, 4, "generations of 4 (without: -75 %)"),
        ([Trial(10, 10)] * 16, 16, 16, 16, "the longest trial"),
        ([Trial(10, 10)] * 16, 4, 16, 4, "nodes and generations of 4 (without: -75 %)"),
    ],
)
def test_what_limits(trials, nodes, boards, generation, expected):
    assert limits(Plan(tuple(trials), nodes, boards, generation, 0)) == expected


def record(figures, **took):
    return {"reduce": "none", "precision": "fp32", "figures": figures, "seconds": took}


def test_only_what_saw_every_image_is_scaled():
    looks = {"proxy": 1.0, "float accuracy": 20.0, "engine accuracy": 70.0, "latency": 50.0}
    found = scaled(
        [
            record({"float_images": 400, "images": 400}, **looks),
            record({"float_images": 400, "images": 32}, **{**looks, "latency": 0.0}),
            record({"float_images": 48}, **{"proxy": 1.0, "float accuracy": 3.0}),
            record({"images": 400}, **{"engine accuracy": 30.0}),  # all of it can be evaluation
            record({}, proxy=1.0),
        ],
        images=4000,
        image_s=0.1,
    )
    assert found == [
        Trial(1 + 200 + 30 + 400, 50), Trial(1 + 200 + 70, 0), Trial(1 + 3, 0), Trial(300, 0), Trial(1, 0),
    ]  # fmt: skip


def test_the_script_takes_the_record_of_a_study(tmp_path):
    one = record({"images": 400}, **{"engine accuracy": 50.0, "latency": 60.0})
    dead = record({})
    (tmp_path / "trials.jsonl").write_text("\n".join(map(json.dumps, (one, dead))))
    command = [sys.executable, SCRIPT, tmp_path / "trials.jsonl", "--images", "800", "--trials", "4", "--nodes", "1"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "give --image-ms" in refused.stderr
    (tmp_path / "baseline.json").write_text(json.dumps({"seconds": 40.0, "ranks": [0] * 400}))
    done = subprocess.run([*command, "--boards", "1"], capture_output=True, text=True, check=True)
    # 4 trials of 110 s, and 1200 images of 0.1 s
    assert f"| 1 | 1 | {(440 + 120) / 3600:.1f} | 57 % | 43 % | nodes (without: -" in done.stdout

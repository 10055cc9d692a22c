"""Memory of an evaluation does not grow with its images. Peak memory never falls, so each run has its own process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "stream.py"
GROWTH_MB = 8  # 1500 images of 64 px are 18 MB as PNG and 74 MB as tensors; their index is below 1 MB

SCORE = f"""
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {str(SCRIPT.parent)!r})
from stream import CLASSES, peak_mb, write_shards
from edgevit.data import read_dataset
from edgevit.evaluate import scored
from edgevit.preprocess import Preprocess

write_shards(Path("shards"), 2000, 64)
peaks = []
for count in (500, 2000):
    data = read_dataset(Path("shards")).head(count)
    run = lambda images: images.reshape(len(images), -1)[:, :CLASSES]
    assert len(list(scored(run, "fake", Preprocess(size=(64, 64)), data, 8))) == count
    peaks.append(peak_mb())
print(*peaks)
"""


def test_two_thousand_images_take_the_memory_of_five_hundred(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCORE], cwd=tmp_path, capture_output=True, text=True, check=True)
    few, many = map(float, done.stdout.split())
    assert few > 20  # Python and numpy alone
    assert many - few < GROWTH_MB


@pytest.mark.slow
def test_the_benchmark_evaluates_a_bundle_with_bounded_memory(tmp_path):
    command = [sys.executable, SCRIPT, "-o", tmp_path, "--images", "500", "8000", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    few, many = json.loads(done.stdout)
    assert (few["images"], many["images"]) == (500, 8000)
    assert many["peak_mb"] - few["peak_mb"] < GROWTH_MB
    assert many["peak_mb"] < 1500
    assert [one["at"] for one in many["left"]] == [0.1, 0.5, 0.9]
    # Half-way it has run for seconds; the other jobs of a machine may double the rest of it, not more.
    half = many["left"][1]
    assert half["said_s"] is None or half["true_s"] / 4 < half["said_s"] < half["true_s"] * 4

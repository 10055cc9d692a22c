"""Preprocessing gives the tensors that accuracy was measured with; the engine takes them. `python -m pytest`."""

import json
from pathlib import Path

import numpy as np

from edgevit.embed.app_python import Classifier
from edgevit.embed.app_python.classifier import open_image

GOLDEN = Path(__file__).resolve().parent / "golden"


def test_preprocessing_is_exact() -> None:
    """Every bit of eight tensors."""
    classifier, index = Classifier(), json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
    for vector in index["vectors"]:
        want = np.fromfile(GOLDEN / vector["tensor"], "<f4").reshape(1, *index["shape"])
        assert np.array_equal(classifier.tensor(open_image(GOLDEN / vector["image"])), want), vector["image"]


def test_engine_gives_scores_that_can_be_ranked() -> None:
    """Shares add up to one, best first."""
    best = Classifier().run(GOLDEN / "2.ppm", top=10**6)
    assert abs(sum(p.share for p in best) - 1) < 1e-3  # float32 sums
    assert [p.score for p in best] == sorted((p.score for p in best), reverse=True)

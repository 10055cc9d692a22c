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


def test_scores_are_your_own() -> None:
    """The next run does not write over them, and a tensor that cannot be written to will do."""
    classifier = Classifier()
    first, second = (classifier.tensor(open_image(GOLDEN / name)) for name in ("2.ppm", "6.ppm"))
    scores = classifier.scores(first)
    kept = scores.copy()
    second.flags.writeable = False
    best = classifier.run_tensor(second, top=1)
    assert np.array_equal(scores, kept)
    assert best == classifier.run(GOLDEN / "6.ppm", top=1) != classifier.run_tensor(first, top=1)

"""Whoever is at the limit is rarely called worse, whoever is far beyond it soon is; the interval holds the truth."""

import random

import numpy as np
import pytest

from edgevit.tune.flips import ALPHA, NORMAL, clearly_worse, drop_interval, smoothed_drop

RUNS, IMAGES = 300, 256


def stopped(lose: float, win: float, limit: float, draw: random.Random) -> int | None:
    """The image after which a candidate with these chances to flip is called worse."""
    lost = won = 0
    for image in range(1, IMAGES + 1):
        chance = draw.random()
        lost += chance < lose
        won += lose <= chance < lose + win
        if image % 4 == 0 and clearly_worse(lost, won, image, limit):
            return image
    return None


@pytest.mark.parametrize(("lose", "win", "limit"), [(0.05, 0.05, 0.0), (0.05, 0.04, 1.0), (0.01, 0.0, 1.0)])
def test_a_candidate_at_the_limit_is_rarely_stopped(lose, win, limit):
    draw = random.Random(0)
    wrong = sum(stopped(lose, win, limit, draw) is not None for _ in range(RUNS))
    # binomial: 15 of 300 expected at most, its standard deviation is 3.8
    assert wrong <= RUNS * ALPHA + 8


def test_a_candidate_far_beyond_the_limit_is_stopped_early():
    draw = random.Random(0)
    ends = sorted(stopped(0.2, 0.02, 1.0, draw) or IMAGES for _ in range(50))
    assert ends[25] < IMAGES / 3


def test_no_flip_says_nothing_of_being_worse():
    assert not clearly_worse(0, 0, 10_000, 1.0)
    assert not clearly_worse(0, 50, 100, 0.0)


@pytest.mark.parametrize(("lose", "win"), [(0.02, 0.01), (0.1, 0.02), (0.01, 0.0)])
def test_the_interval_holds_the_true_drop(lose, win):
    draw = random.Random(0)
    held = 0
    for _ in range(RUNS):
        chances = [draw.random() for _ in range(IMAGES)]
        lost, won = sum(c < lose for c in chances), sum(lose <= c < lose + win for c in chances)
        low, high = drop_interval(lost, won, IMAGES)
        held += low <= 100 * (lose - win) <= high
    assert held >= 0.92 * RUNS  # 95 % asked; three standard deviations of 300 draws are 3.8 %


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5])
def test_near_misses_give_the_drop_with_half_the_error(shift):
    """Margins as of a good classifier, disturbed: 200 samples of 400 images against the drop of a large population."""
    draw = np.random.default_rng(0)

    def margins(count):
        was = draw.normal(3.0, 2.4, count)
        return was, was - shift + draw.normal(0, 0.8, count)

    was, now = margins(2_000_000)
    truth = 100 * float(np.mean((was > 0).astype(float) - (now > 0)))
    plain, near, held = [], [], 0
    for _ in range(200):
        was, now = margins(400)
        plain.append(100 * float(np.mean((was > 0).astype(float) - (now > 0))))
        drop, error = smoothed_drop(was, now)
        near.append(drop)
        held += abs(drop - truth) <= NORMAL * error
    assert np.std(near) < 0.6 * np.std(plain)
    assert abs(np.mean(near) - truth) < 0.5 * np.std(plain)
    assert held > 0.85 * 200  # 95 % less what the bias takes


def test_where_dense_cannot_decide_near_misses_are_flips():
    assert smoothed_drop([0.0, 0.0, 0.0, 0.0], [1.0, -1.0, -1.0, 0.0])[0] == pytest.approx(12.5)

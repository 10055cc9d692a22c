"""Whoever is at the limit is rarely called worse, whoever is far beyond it soon is; the interval holds the truth."""

import random

import pytest

from edgevit.tune.flips import ALPHA, clearly_worse, drop_interval

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

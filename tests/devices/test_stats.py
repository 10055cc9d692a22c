"""Known answers, and the coverage the intervals promise."""

import doctest
import math
import random
from statistics import fmean, median

import pytest

from edgevit.devices import conditions, stats


@pytest.mark.parametrize("module", [stats, conditions])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(("percent", "expected"), [(1, 1), (10, 1), (10.5, 2), (50, 5), (90, 9), (91, 10), (100, 10)])
def test_nearest_rank(percent, expected):
    samples = list(range(1, 11))
    random.Random(0).shuffle(samples)
    assert stats.percentile(samples, percent) == expected


@pytest.mark.parametrize(("samples", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_refuses(samples, percent):
    with pytest.raises(ValueError, match="percentile"):
        stats.percentile(samples, percent)


@pytest.mark.parametrize(("percent", "least"), [(90, 64), (99, 662)])
def test_tails_need_samples(percent, least):
    assert stats.tail([1.0] * (least - 1), percent) is None
    assert stats.tail([1.0] * least, percent) == 1.0


def test_outliers_are_counted_and_kept():
    samples = [10.0, 10.1, 9.9, 10.0, 10.2, 9.8] * 10 + [30.0, 31.0]
    assert stats.outliers(samples) == 2
    assert stats.percentile(samples, 100) == 31.0


def test_bootstrap_is_deterministic_per_seed():
    values = [random.Random(1).gauss(10, 1) for _ in range(9)]
    assert stats.bootstrap_ci(values, median, seed=3) == stats.bootstrap_ci(values, median, seed=3)
    low, high = stats.bootstrap_ci(values, median)
    assert min(values) <= low <= median(values) <= high <= max(values)


@pytest.mark.parametrize(("count", "least", "most"), [(3, 0.89, 0.99), (6, 0.89, 0.99), (12, 0.91, 1.0)])
def test_mean_interval_covers(count, least, most):
    """With the plain percentile bootstrap, six values cover 0.87 of the time."""
    hits = 0
    for trial in range(400):
        draw = random.Random(trial)
        values = [draw.gauss(0, 0.05) for _ in range(count)]
        few = count < stats.MIN_BOOTSTRAP
        low, high = stats.t_ci(values) if few else stats.bootstrap_ci(values, fmean, trial, resamples=1000)
        hits += low <= 0 <= high
    assert least <= hits / 400 <= most


def test_round_median_interval_covers():
    hits = 0
    for trial in range(300):
        draw = random.Random(trial)
        low, high = stats.bootstrap_ci([draw.lognormvariate(0, 0.1) for _ in range(8)], median, trial, resamples=1000)
        hits += low <= 1 <= high
    assert hits / 300 >= 0.92


def test_speedup_of_a_known_ratio_under_drift():
    """A drift of 3 % a round falls on both sides of A B B A alike."""
    blocks, clock = [], 0
    for _ in range(6):
        a1, b1, b2, a2 = (base * 1.03 ** (clock + i) for i, base in enumerate((20.0, 10.0, 10.0, 20.0)))
        blocks.append(stats.Block((a1, a2), (b1, b2)))
        clock += 4
    found = stats.speedup(blocks)
    assert found.ratio == pytest.approx(2.0, rel=1e-9)
    assert found.ci95 == pytest.approx((2.0, 2.0))
    assert found.noise_floor == pytest.approx(1.03**3 - 1)
    assert found.differs is True


def test_a_against_a_finds_no_difference():
    draw = random.Random(7)
    calls = 0
    for _ in range(100):
        blocks = [
            stats.Block(
                (draw.lognormvariate(2, 0.05), draw.lognormvariate(2, 0.05)),
                (draw.lognormvariate(2, 0.05), draw.lognormvariate(2, 0.05)),
            )
            for _ in range(6)
        ]
        found = stats.speedup(blocks)
        assert 0.9 < found.ratio < 1.1
        calls += bool(found.differs)
    assert calls <= 5


@pytest.mark.parametrize(("count", "most"), [(6, 0), (7, 2), (8, 3), (10, 8), (12, 13), (20, 52)])
def test_signed_rank_interval_is_the_one_of_the_tables(count, most):
    """most: the largest sum of ranks that is rejected, from printed tables of the test. Powers of 2 have no ties."""
    values = [float(2**i) for i in range(count)]
    means = sorted((a + b) / 2 for i, a in enumerate(values) for b in values[i:])
    _, (low, high) = stats.signed_rank_ci(values)
    assert (means.index(low), len(means) - 1 - means.index(high)) == (most, most)


def test_one_disturbed_pair_hides_no_difference():
    """Eleven blocks 3 to 6 % slower, and one in which something else ran: a mean's interval contains 1."""
    blocks = [stats.Block((10.0,), (10.3 + 0.03 * i,)) for i in range(11)]
    disturbed = [*blocks, stats.Block((16.0,), (10.4,))]
    few, many = stats.speedup(blocks), stats.speedup(disturbed)
    assert many.ci95[1] < 1
    assert many.ratio == pytest.approx(few.ratio, rel=0.005)
    assert stats.t_ci([block.log_ratio for block in disturbed])[1] > 0


def test_a_difference_below_the_noise_floor_is_not_called():
    found = stats.speedup([stats.Block((10.0, 11.0), (10.3, 10.3)), stats.Block((11.0, 10.0), (10.31, 10.31))] * 3)
    assert found.ci95[0] > 1
    assert found.noise_floor == pytest.approx(0.1)
    assert found.differs is False


@pytest.mark.parametrize(("medians", "missing"), [([10.0], True), ([10.0, 10.1], False), ([10.0] * 5, False)])
def test_interval_of_few_rounds(medians, missing):
    low, high = stats.round_ci(medians)
    assert (low is None) is missing
    assert (high is None) is missing
    if not missing:
        assert low <= median(medians) <= high
        assert math.isfinite(high)

"""Statistics of latencies: pure functions over raw samples, standard library only.

The unit of replication is the round (one fresh process): samples inside one process are autocorrelated, and
memory placement, clocks and neighbours differ from process to process. So every interval here is over rounds
or over blocks of rounds, never over pooled samples. Intervals are at 95 %.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median, stdev

MIN_SAMPLES = {90: 64, 99: 662}
"""Fewest samples for which a tail percentile is worth reporting."""
MIN_BOOTSTRAP = 5
"""Fewest units a bootstrap interval is taken over; with less, Student's t on the logarithms."""
RESAMPLES = 10_000

Interval = tuple[float, float]
NONE_INTERVAL: tuple[None, None] = (None, None)

# Two-sided 95 % points of Student's t for 1, 2, ... 30 degrees of freedom.
# fmt: off
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
        2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
        2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
# fmt: on


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest sample with at least `percent` % of all at or below it.

    It is always one of the samples; nothing is interpolated.

    >>> percentile([15, 20, 35, 40, 50], 30)
    20
    >>> percentile([15, 20, 35, 40, 50], 100)
    50
    """
    if not samples or not 0 < percent <= 100:
        raise ValueError(f"percentile({percent}) of {len(samples)} samples: want 0 < percent <= 100")
    # The rounding keeps 0.9 * 10 = 9.000000000000002 from becoming rank 10.
    rank = math.ceil(round(percent / 100 * len(samples), 9))
    return sorted(samples)[rank - 1]


def tail(samples: Sequence[float], percent: int) -> float | None:
    """`percentile` 90 or 99, or None when there are too few samples to say.

    >>> tail(range(1, 64), 90) is None
    True
    >>> tail(range(1, 101), 90), tail(range(1, 101), 99), tail(range(1, 1001), 99)
    (90, None, 990)
    """
    return percentile(samples, percent) if len(samples) >= MIN_SAMPLES[percent] else None


def mad(samples: Sequence[float]) -> float:
    """The median absolute deviation from the median.

    >>> mad([1, 1, 2, 2, 4, 6, 9])
    1
    """
    centre = median(samples)
    return median(abs(sample - centre) for sample in samples)


def outliers(samples: Sequence[float]) -> int:
    """How many samples exceed median + 8 · MAD. They are counted and stay in: a stall is part of the latency.

    >>> outliers([10, 11, 9, 10, 12, 10, 9, 40])
    1
    """
    limit = median(samples) + 8 * mad(samples)
    return sum(sample > limit for sample in samples)


def _t95(freedom: int) -> float:
    """The two-sided 95 % point of Student's t; beyond the table, its expansion around the normal one."""
    return _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.372 / freedom


def bootstrap_ci(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """A 95 % bootstrap interval of `statistic`, widened for few values; the same for the same seed.

    The plain percentile interval covers only about 87 % of the time with six values: resampling shrinks the
    spread by sqrt((n - 1) / n), and normal tails stand in for Student's. So the percentiles are moved out to
    where a t interval of that many values would have them ("expanded percentile" interval).

    >>> bootstrap_ci([10.0] * 6, median)
    (10.0, 10.0)
    >>> low, high = bootstrap_ci([9.8, 10.1, 10.0, 10.3, 9.9, 10.2], fmean, seed=1)
    >>> f"{low:.2f} {high:.2f}"
    '9.87 10.25'
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"a bootstrap interval needs two values or more, not {count}")
    below = NormalDist().cdf(-math.sqrt(count / (count - 1)) * _t95(count - 1))
    draw = random.Random(seed)
    found = sorted(statistic(draw.choices(values, k=count)) for _ in range(resamples))
    skip = min(int(below * resamples), (resamples - 1) // 2)
    return found[skip], found[-1 - skip]


def t_ci(values: Sequence[float]) -> Interval:
    """Student's 95 % interval of the mean: honest, and wide, for two to four values.

    >>> f"{t_ci([1.0, 2.0, 3.0])[0]:.2f} {t_ci([1.0, 2.0, 3.0])[1]:.2f}"
    '-0.48 4.48'
    """
    half = _t95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def round_ci(medians_ms: Sequence[float], seed: int = 0) -> Interval | tuple[None, None]:
    """The 95 % interval of the median of round medians.

    Bootstrap over five rounds or more, Student's t on the logarithms for two to four, (None, None) for one.

    >>> round_ci([10.0])
    (None, None)
    >>> low, high = round_ci([10.0, 10.2])
    >>> f"{low:.1f} {high:.1f}"
    '8.9 11.5'
    >>> round_ci([10.0, 10.2, 9.9, 10.1, 10.3, 10.0])
    (9.9, 10.3)
    """
    if len(medians_ms) < 2:
        return NONE_INTERVAL
    if len(medians_ms) >= MIN_BOOTSTRAP:
        return bootstrap_ci(medians_ms, median, seed)
    low, high = t_ci([math.log(value) for value in medians_ms])
    return math.exp(low), math.exp(high)


@dataclass(frozen=True)
class Block:
    """Medians in milliseconds, in order, of the rounds of one A B B A block: A is `against`, B the bundle.

    A session with an odd number of rounds ends in half a block, with one of each. Of two rounds that take turns, they
    are the medians of the turns.
    """

    against_ms: tuple[float, ...]
    bundle_ms: tuple[float, ...]

    @property
    def log_ratio(self) -> float:
        """log(A / B) of the block, the median of its pairs: a linear drift over A B B A cancels."""
        return _median_log(zip(self.against_ms, self.bundle_ms, strict=True))

    @property
    def log_apart(self) -> float | None:
        """log(A / A) of the block, the same of every two in a row; None where there is one."""
        firsts, seconds = self.against_ms[:-1:2], self.against_ms[1::2]
        return _median_log(zip(firsts, seconds, strict=True)) if seconds else None


def _median_log(pairs: Iterable[tuple[float, float]]) -> float:
    return median(math.log(a / b) for a, b in pairs)


@dataclass(frozen=True)
class Speedup:
    """A compared pair. ratio = against / bundle: above 1 the bundle is faster.

    differs: the interval excludes 1 and the effect is larger than the noise floor; None when either is
    unknown.
    """

    ratio: float
    ci95: Interval | tuple[None, None]
    blocks: int
    noise_floor: float | None
    differs: bool | None


def noise_floor(blocks: Sequence[Block]) -> float | None:
    """How far two rounds of the *same* engine lie apart, as a fraction.

    The median over blocks of |log(A1 / A2)|, turned back into a ratio less 1. This is the A/A measurement that every
    A B B A block contains. None when no block is complete.

    >>> f"{noise_floor([Block((10.0, 10.1), (5.0, 5.0)), Block((10.0, 9.7), (5.0, 5.0))]):.3f}"
    '0.020'
    """
    apart = [abs(found) for block in blocks if (found := block.log_apart) is not None]
    return math.expm1(median(apart)) if apart else None


def signed_rank_ci(values: Sequence[float]) -> tuple[float, Interval] | None:
    """The Hodges-Lehmann centre of values and its 95 % interval; None with less than six, of which there is none.

    The centre is the median of the means of all pairs (each value with itself too), the interval lies between those
    that the exact signed-rank test does not reject (Hollander, Wolfe and Chicken, Nonparametric Statistical Methods,
    3.2 and 3.3). One disturbed value moves neither far, while it moves a mean and widens its interval to both sides.

    >>> centre, (low, high) = signed_rank_ci([1.0, 1.1, 0.9, 1.2, 0.8, 1.05, 9.0])
    >>> f"{centre:.3f} {low:.3f} {high:.3f}"
    '1.050 0.900 5.050'
    >>> signed_rank_ci([1.0] * 5) is None
    True
    """
    count = len(values)
    ways = [1]  # of signs that give a sum of ranks, under the hypothesis that 0 is the centre
    for rank in range(1, count + 1):
        ways = [a + b for a, b in zip(ways + [0] * rank, [0] * rank + ways, strict=True)]
    outside, skip = 0, 0
    while 2 * (outside + ways[skip]) <= 0.05 * 2**count:
        outside += ways[skip]
        skip += 1
    if not skip:
        return None
    means = sorted((a + b) / 2 for i, a in enumerate(values) for b in values[i:])
    return median(means), (means[skip - 1], means[-skip])


def speedup(blocks: Sequence[Block]) -> Speedup:
    """exp(centre over blocks of log(A / B)), with its interval over blocks and the A/A noise floor.

    The centre is that of `signed_rank_ci`; with less than six blocks the mean, with Student's interval.

    >>> fast = speedup([Block((20.0, 20.2), (10.0, 10.1)), Block((20.4, 20.0), (10.0, 10.0))] * 3)
    >>> f"{fast.ratio:.3f} {fast.ci95[0]:.3f} {fast.ci95[1]:.3f} {fast.noise_floor:.3f} {fast.differs}"
    '2.010 2.000 2.020 0.015 True'
    >>> once = speedup([Block((20.0,), (10.0,))])
    >>> round(once.ratio, 9), once.ci95, once.noise_floor, once.differs
    (2.0, (None, None), None, None)
    """
    logs = [block.log_ratio for block in blocks]
    floor = noise_floor(blocks)
    if len(logs) < 2:
        return Speedup(math.exp(fmean(logs)), NONE_INTERVAL, len(logs), floor, None)
    centre, (low, high) = signed_rank_ci(logs) or (fmean(logs), t_ci(logs))
    clear = None if floor is None else bool((low > 0 or high < 0) and abs(centre) > math.log1p(floor))
    return Speedup(math.exp(centre), (math.exp(low), math.exp(high)), len(logs), floor, clear)

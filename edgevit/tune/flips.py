"""Two classifiers on the same images: what the images lost and won say about the drop."""

from __future__ import annotations

import math
from collections.abc import Sequence

ALPHA = 0.05
"""Chance that a candidate exactly at the limit is called clearly worse, however often one looks."""
NEAR = 0.3
"""How far from the border an image counts as nearly right or wrong, as a share of dense's median distance from it."""
NORMAL = 1.959964
"""Standard errors to each side of a 95 % interval."""
BETS = tuple(i / 20 for i in range(1, 20))


def clearly_worse(lost: int, won: int, images: int, limit: float) -> bool:
    """Whether the drop is above `limit` points for sure, at any moment of a sequential comparison.

    An image changes accuracy by d = 1 (lost), -1 (won) or 0. Whoever bets a share b / (1 + D) on "the mean of d is
    above D" multiplies his money by 1 + b / (1 + D) * (d - D) per image, and if that is not so he has no more than at
    the start on average: the chance that he ever holds 1 / ALPHA times as much is at most ALPHA (Ville's inequality).
    So one may look after every image. The stake is spread evenly over BETS. With D = 0 only flips count, and each
    bet is a sequential sign test on them, as McNemar's is on a fixed number. Exact, without a normal approximation.
    Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2024), 1-27.

    >>> clearly_worse(lost=10, won=1, images=60, limit=1.0), clearly_worse(lost=5, won=3, images=60, limit=1.0)
    (True, False)
    """
    share = limit / 100
    logs = []
    for bet in BETS:
        b = bet / (1 + share)
        same = (images - lost - won) * math.log1p(-b * share)
        logs.append(lost * math.log1p(b * (1 - share)) + won * math.log1p(-b * (1 + share)) + same)
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs)) >= -math.log(ALPHA)


def drop_interval(lost: int, won: int, images: int) -> tuple[float, float]:
    """95 % interval of the drop in points.

    Wald's interval of a paired difference with half an image added to each of the four cells: Agresti and Min, Simple
    improved confidence intervals for comparing matched proportions, Statistics in Medicine 24 (2005), 729-740.

    >>> [round(end, 1) for end in drop_interval(lost=20, won=10, images=400)]
    [-0.2, 5.2]
    """
    n, b, c = images + 2, lost + 0.5, won + 0.5
    net = (b - c) / n
    error = NORMAL * math.sqrt((b + c) / n - net * net) / math.sqrt(n)
    return 100 * (net - error), 100 * (net + error)


def smoothed_drop(dense: Sequence[float], ours: Sequence[float]) -> tuple[float, float]:
    """The drop in points where an image counts by how clearly it is right, and its standard error.

    dense, ours: by image, the score of the true class less the highest of the others. An image counts
    1 / (1 + exp(-d / w)), d that distance and w = NEAR times dense's median |d|: one that came near the border counts
    in part, whether it crossed it or not. The few flips on which the plain drop rests are luck on both sides of the
    border; this rests on all images near it: its error is about half as large, as of three to four times as many
    images, and its bias small beside that (docs/tune.md).

    >>> drop, error = smoothed_drop([3.0, 2.0, 4.0, -1.0], [3.0, 0.1, 4.0, -1.0])  # nothing crossed the border
    >>> round(drop, 1), round(error, 1)
    (10.0, 8.7)
    """
    import numpy as np

    was, now = np.asarray(dense, dtype=np.float64), np.asarray(ours, dtype=np.float64)
    width = max(NEAR * float(np.median(np.abs(was))), 1e-12)
    # 1 / (1 + exp(-x)) without overflow
    lost = 50 * (np.tanh(was / (2 * width)) - np.tanh(now / (2 * width)))
    return float(lost.mean()), float(lost.std() / math.sqrt(len(lost)))

"""ATM against loops: matching by position first, small into large later; thresholds into counts."""

import math

import pytest
import torch

from edgevit.errors import ScheduleError
from edgevit.tokens.atm import ATM, best_match, counts_from_similarity, thresholds
from edgevit.tokens.schedule import parse_schedule
from edgevit.tokens.tome import ToMe

SUM_ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of at most 15 terms, in another order


def reference(made, i, r, loops):
    """Rows, sizes, best similarities of one image, matched by size."""
    keys, sizes, prefix = made.mean_keys(i), made.sizes(i), made.prefix
    ranked = sorted(range(prefix, made.count), key=lambda p: (-sizes[p], p % 2 == 0, p))
    half = (made.count - prefix + 1) // 2
    large, small = sorted(ranked[:half]), sorted(ranked[half:])
    score = lambda p, q: loops.cosine(keys[p], keys[q])  # noqa: E731
    pairs = loops.join(small, large, score, r)
    order = [*range(prefix), *(p for p in small if p not in pairs), *large]
    joins = {p: order.index(q) for p, q in pairs.items()}
    total = [sizes[own] + sum(sizes[p] for p, slot in joins.items() if slot == s) for s, own in enumerate(order)]
    best = [max(score(p, q) for q in large) for p in small]
    return loops.means(made.x[i].tolist(), order, joins, sizes), total, best


@pytest.mark.parametrize(
    ("prefix", "count", "r"), [(p, n, r) for p in (0, 1, 2, 5) for n in (14, 15) for r in (1, 3, (n - p) // 2)]
)
def test_late_blocks_equal_the_loop_written_reference(seen, loops, prefix, count, r):
    made = seen(2, count, prefix, seed=count + prefix + r)
    site = made.site(count - r, block=9, depth=12)
    rows, size = ATM.plan(site).apply(made.x, made.size)
    for i in range(2):
        want, total, best = reference(made, i, r, loops)
        torch.testing.assert_close(rows[i], torch.tensor(want), **SUM_ROUNDING)
        assert size[i].tolist() == total
        torch.testing.assert_close(best_match(site)[i], torch.tensor(best), **SUM_ROUNDING)


def test_a_large_token_never_joins_a_larger_or_a_large_one(seen):
    made = seen(4, 15, 1, seed=5)
    plan = ATM.plan(made.site(8, block=12, depth=12))
    for i in range(4):
        sizes = made.sizes(i)
        large = sorted(sizes[1:], reverse=True)[:7][-1]
        assert all(sizes[p] <= large for p in plan.merged[i].tolist())
        assert all(sizes[int(plan.order[i, slot])] >= large for slot in plan.target[i].tolist())


@pytest.mark.parametrize(("block", "switch"), [(8, None), (3, "3"), (12, "12")])
def test_early_blocks_are_tome(seen, loops, block, switch):
    made = seen(2, 15, 1)
    options = {} if switch is None else {"switch": switch}
    site = made.site(11, block=block, depth=12, options=options)
    got, want = ATM.plan(site), ToMe.plan(site)
    assert torch.equal(got.slots(), want.slots())
    a, b = loops.even_and_odd(1, 15)
    for i, found in enumerate(best_match(site)):
        keys = made.mean_keys(i)
        best = [max(loops.cosine(keys[p], keys[q]) for q in b) for p in a]
        torch.testing.assert_close(found, torch.tensor(best), **SUM_ROUNDING)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_equal_sizes_are_split_as_tome_splits_them(seen, prefix):
    made = seen(2, 14 + prefix, prefix)
    made.size[:] = 3
    site = made.site(10 + prefix, block=12, depth=12)
    assert torch.equal(ATM.plan(site).slots(), ToMe.plan(site).slots())


def test_thresholds_fall_by_the_formula_down_to_the_least():
    got = thresholds(6, 0.9, 0.05, 0.7)
    assert got == tuple(pytest.approx(max(0.9 - (math.exp(0.05 * i) - 1), 0.7)) for i in range(6))
    assert got[0] == 0.9
    assert got[-1] == 0.7


@pytest.mark.parametrize(("quantile", "count"), [(0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_counts_are_the_lower_quantile_over_images(quantile, count):
    above = torch.tensor([3, 0, 4, 1, 2])
    best = (torch.arange(6) < above.unsqueeze(1)).float()
    assert counts_from_similarity(best, 0.5, quantile) == count


def test_a_similarity_at_the_threshold_does_not_merge():
    assert counts_from_similarity(torch.full((3, 5), 0.5), 0.5) == 0


def test_switch_must_be_a_number_of_blocks():
    with pytest.raises(ScheduleError, match="switch=-1 must be the last block that ignores sizes"):
        parse_schedule("atm:r=8,switch=-1")

"""ToMeCIS against loops: ToMe's pairs, averaged by class attention times length of the value."""

import math

import pytest
import torch

from edgevit.tokens.tomecis import ToMeCIS

SUM_ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of at most 15 terms, in another order


def importance(made, i):
    """Mean over heads of attention times length, per token."""
    total = [0.0] * made.count
    for row, values in zip(made.class_rows(i), made.tap.v[i].tolist(), strict=True):
        for j, value in enumerate(values):
            total[j] += row[j] * math.sqrt(sum(c * c for c in value)) / 2
    return total


def reference(made, i, r, loops):
    keys = made.mean_keys(i)
    a, b = loops.even_and_odd(made.prefix, made.count)
    pairs = loops.join(a, b, lambda p, q: loops.cosine(keys[p], keys[q]), r)
    order = [*range(made.prefix), *(p for p in a if p not in pairs), *b]
    joins = {p: order.index(q) for p, q in pairs.items()}
    rows = loops.means(made.x[i].tolist(), order, joins, importance(made, i))
    sizes = made.sizes(i)
    total = [sizes[own] + sum(sizes[p] for p, slot in joins.items() if slot == s) for s, own in enumerate(order)]
    return rows, total


@pytest.mark.parametrize("sized", [False, True], ids=["sizes_none", "sizes_given"])
@pytest.mark.parametrize(
    ("prefix", "count", "r"), [(p, n, r) for p in (1, 2, 5) for n in (14, 15) for r in (1, 3, (n - p) // 2)]
)
def test_rows_and_sizes_equal_the_loop_written_reference(seen, loops, prefix, count, r, sized):
    made = seen(2, count, prefix, sized, seed=count + prefix + r)
    rows, size = ToMeCIS.plan(made.site(count - r)).apply(made.x, made.size)
    for i in range(2):
        want, total = reference(made, i, r, loops)
        torch.testing.assert_close(rows[i], torch.tensor(want), **SUM_ROUNDING)
        assert size[i].tolist() == total  # whole numbers: exact in float32


def test_a_token_the_class_token_ignores_leaves_no_trace_in_the_mean(seen):
    made = seen(1, 14, 1, sized=False)
    plan = ToMeCIS.plan(made.site(13))
    source, target = int(plan.merged[0, 0]), int(plan.order[0, int(plan.target[0, 0])])
    made.tap.v[:, :, source] = 0  # what it would give to the class token is nothing
    rows, size = ToMeCIS.plan(made.site(13)).apply(made.x, None)
    slot = int(plan.target[0, 0])
    # its weight is the floor of 1e-6 beside about 0.05
    torch.testing.assert_close(rows[0, slot], made.x[0, target], rtol=0, atol=1e-3)
    assert size[0, slot] == 2

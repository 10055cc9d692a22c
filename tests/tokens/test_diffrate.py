"""DiffRate against loops: order, prune, merge; both ways to give the rates."""

import math

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError
from edgevit.reduce import reduce
from edgevit.tokens.diffrate import SIZE_FLOOR, DiffRate
from edgevit.tokens.schedule import parse_schedule

SUM_ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of at most 15 terms, in another order


def reference(made, i, left, out, loops):
    """Rows, sizes, slots and pruned tokens of one image: `left` tokens behind the pruning, `out` behind the merge."""
    x, sizes, prefix = made.x[i].tolist(), made.sizes(i), made.prefix
    heads = made.class_rows(i)
    attention = [sum(row[j] for row in heads) / len(heads) for j in range(made.count)]
    order = [*range(prefix), *sorted(range(prefix, made.count), key=lambda j: -attention[j])]
    kept, joining, pruned = order[:out], order[out:left], order[left:]
    joins = {p: max(range(prefix, out), key=lambda s: loops.cosine(x[p], x[kept[s]])) for p in joining}
    total = [sizes[t] for t in kept]
    for p, slot in joins.items():
        total[slot] += sizes[p] * loops.cosine(x[p], x[kept[slot]])
    rows = loops.means(x, kept, joins, [1.0] * made.count)
    return rows, [max(t, SIZE_FLOOR) for t in total], joins, set(pruned)


CASES = [
    (prefix, count, left, out)
    for prefix in (1, 2, 5)
    for count in (14, 15)
    for left, out in ((count, 9), (12, 9), (10, prefix + 1), (9, 9), (count, count - 1))
]


@pytest.mark.parametrize("sized", [False, True], ids=["sizes_none", "sizes_given"])
@pytest.mark.parametrize(("prefix", "count", "left", "out"), CASES)
def test_rows_sizes_and_slots_equal_the_loop_written_reference(seen, loops, prefix, count, left, out, sized):
    made = seen(2, count, prefix, sized, seed=count + prefix + left + out)
    plan = DiffRate.plan(made.site(out, ordinal=1, options={"p": f"999/{left}"}))
    rows, size = plan.apply(made.x, made.size)
    for i in range(2):
        want, total, joins, pruned = reference(made, i, left, out, loops)
        torch.testing.assert_close(rows[i], torch.tensor(want), **SUM_ROUNDING)
        if size is None:
            assert total == [1.0] * out
        else:
            torch.testing.assert_close(size[i], torch.tensor(total), **SUM_ROUNDING)
        assert set(plan.dropped()[i].nonzero().flatten().tolist()) == pruned
        slots = plan.slots()[i].tolist()
        assert {p: slots[p] for p in joins} == joins


@pytest.mark.parametrize(("share", "pruned"), [(None, 3), ("0.5", 3), ("0", 0), ("1", 6), ("0.25", 2), ("0.2", 1)])
def test_prune_is_the_share_of_the_removed_that_is_pruned(seen, share, pruned):
    made = seen(2, 15, 1)
    plan = DiffRate.plan(made.site(9, options={} if share is None else {"prune": share}))
    assert plan.dropped().sum(dim=1).tolist() == [pruned, pruned]


def test_an_entry_of_p_beyond_the_tokens_prunes_nothing(seen):
    made = seen(1, 15, 1)
    assert not DiffRate.plan(made.site(9, options={"p": "197"})).dropped().any()


def test_sizes_stay_positive_where_all_cosines_are_negative(seen):
    made = seen(1, 14, 1, sized=False)
    made.x[:, 1:] = -1
    first = int(DiffRate.plan(made.site(2)).order[0, 1])
    made.x[:, first] = 1  # the one patch that stays is opposite to all others
    _, size = DiffRate.plan(made.site(2, options={"prune": "0"})).apply(made.x, None)
    assert size.tolist() == [[1.0, pytest.approx(SIZE_FLOOR)]]
    assert math.isfinite(size.log().sum())


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("diffrate:m=9.5", "m=9.5 must be a whole number of tokens, 1 or more"),
        ("diffrate:m=0", "m=0 must be a whole number of tokens, 1 or more"),
        ("diffrate:m=9/8,p=9/x@1,2", "p=9/x must be whole numbers of tokens, one per block, such as p=190/99"),
        ("diffrate:m=9/8,p=9@1,2", "p= has 1 entries and m= 2; give one of each per block"),
        ("diffrate:m=9/8,p=9/7@1,2", "p=7 is less than m=8, which is what its merge leaves"),
        ("diffrate:keep=0.7,p=9", "p= goes with m=; with keep= give prune= instead"),
        ("diffrate:flops=0.7,p=9", "p= goes with m=; with flops= give prune= instead"),
        ("diffrate:m=9,p=9,prune=0.5@1", "p= says how many are pruned, and so does prune=; give one"),
        ("diffrate:m=9,prune=1.5", r"prune=1.5 must be between 0 \(merge all\) and 1 \(prune all\)"),
        ("diffrate:m=9,prune=half", r"prune=half must be between 0 \(merge all\) and 1 \(prune all\)"),
        ("diffrate:m=9,prune=nan", r"prune=nan must be between 0 \(merge all\) and 1 \(prune all\)"),
    ],
)
def test_rates_that_do_not_fit_together_are_refused(spec, reason):
    with pytest.raises(ScheduleError, match=reason):
        parse_schedule(spec)


def test_p_is_paired_with_the_schedule_s_blocks_also_behind_one_that_removes_nothing(tiny_vit):
    pytest.importorskip("timm")
    reduced = reduce(adapt(tiny_vit(depth=3)), parse_schedule("diffrate:m=17/14/9,p=17/15/13@1,2,3"))
    assert reduced.tokens == (17, 14, 9)
    with torch.no_grad():
        plans = reduced.module.run(torch.rand(2, 3, 32, 32))[1]
    assert plans[0] is None
    assert [plan.dropped().sum(dim=1).tolist() for plan in plans[1:]] == [[2, 2], [1, 1]]


def test_at_least_one_patch_stays():
    assert DiffRate.tokens_after(197, 2, "m", 1) == 3
    assert DiffRate.tokens_after(197, 1, "r", 400) == 2

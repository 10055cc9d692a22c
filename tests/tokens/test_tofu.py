"""ToFu against loops: pruning in the first blocks, the mean at the longest token's length in the others."""

import math

import pytest
import torch

from edgevit.errors import ScheduleError
from edgevit.tokens.schedule import parse_schedule
from edgevit.tokens.tofu import ToFu

SUM_ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of at most 15 terms, in another order


def norm(row):
    return math.sqrt(sum(v * v for v in row))


def reference(made, i, r, pruned, loops):
    """Rows, sizes, sources of one image."""
    keys, x, sizes = made.mean_keys(i), made.x[i].tolist(), made.sizes(i)
    a, b = loops.even_and_odd(made.prefix, made.count)
    pairs = loops.join(a, b, lambda p, q: loops.cosine(keys[p], keys[q]), r)
    rows, total = [], []
    for own in [*range(made.prefix), *(p for p in a if p not in pairs), *b]:
        group = [own, *(p for p, q in pairs.items() if q == own)]
        mean = [sum(x[t][c] for t in group) / len(group) for c in range(len(x[0]))]
        longest = max(norm(x[t]) for t in group)
        rows.append(x[own] if pruned or len(group) == 1 else [v / norm(mean) * longest for v in mean])
        total.append(sum(sizes[t] for t in group))
    return rows, total, set(pairs)


@pytest.mark.parametrize(("block", "pruned"), [(1, True), (2, True), (3, False), (4, False)])
@pytest.mark.parametrize(
    ("prefix", "count", "r"), [(p, n, r) for p in (0, 1, 2, 5) for n in (14, 15) for r in (1, 3, (n - p) // 2)]
)
def test_rows_and_sizes_equal_the_loop_written_reference(seen, loops, prefix, count, r, block, pruned):
    made = seen(2, count, prefix, seed=count + prefix + r)
    plan = ToFu.plan(made.site(count - r, block=block, depth=4))
    rows, size = plan.apply(made.x, made.size)
    for i in range(2):
        want, total, gone = reference(made, i, r, pruned, loops)
        torch.testing.assert_close(rows[i], torch.tensor(want), **SUM_ROUNDING)
        assert size[i].tolist() == total
        dropped = plan.dropped()[i].nonzero().flatten().tolist()
        assert set(dropped) == (gone if pruned else set())


@pytest.mark.parametrize(("switch", "pruned"), [(0, (False, False)), (1, (True, False)), (9, (True, True))])
def test_switch_is_the_last_block_that_prunes(seen, switch, pruned):
    made = seen(1, 15, 1)
    for block, want in zip((1, 2), pruned, strict=True):
        plan = ToFu.plan(made.site(11, block=block, depth=12, options={"switch": str(switch)}))
        assert plan.pruned is want


def test_opposite_tokens_and_huge_ones_stay_finite_in_half_precision(seen):
    made = seen(1, 15, 0, sized=False)
    x = torch.full((1, 15, 6), 300.0)  # squares overflow float16
    x[:, ::2] = -300  # means of equal numbers of both are 0
    rows, _ = ToFu.plan(made.site(8, block=2, depth=2)).apply(x.half(), None)
    assert rows.dtype == torch.float16
    assert torch.isfinite(rows).all()


def test_switch_must_be_a_number_of_blocks():
    with pytest.raises(ScheduleError, match="switch=x must be the last block that prunes, 0 or more"):
        parse_schedule("tofu:r=8,switch=x")


def test_a_pruned_token_can_be_restored_from_its_target(seen):
    made = seen(1, 15, 1)
    plan = ToFu.plan(made.site(11, block=1, depth=12))
    gone, slot = plan.merged[0].tolist(), plan.target[0].tolist()
    assert [int(plan.slots()[0, g]) for g in gone] == slot

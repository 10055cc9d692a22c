"""PiToMe against loops: energy, the order by it, and both ways to match inside the order."""

import math

import pytest
import torch

from edgevit.tokens.pitome import PiToMe
from edgevit.tokens.schedule import parse_schedule

SUM_ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of at most 15 terms, in another order


def energies(keys, margin, loops):
    """E of each patch, itself included."""
    found = []
    for a in keys:
        above = [loops.cosine(a, b) - margin for b in keys]
        found.append(sum(z if z > 0 else math.exp(z) - 1 for z in above) / len(keys))
    return found


def reference(made, i, r, margin, all_match, loops):
    """Rows, sizes and slots of one image."""
    keys = made.mean_keys(i)
    energy = dict(zip(range(made.prefix, made.count), energies(keys[made.prefix :], margin, loops), strict=True))
    ranked = sorted(energy, key=lambda p: -energy[p])
    kept = []
    if not all_match:
        ranked, kept = ranked[: 2 * r], ranked[2 * r :]
    a, b = ranked[0::2], ranked[1::2]
    pairs = loops.join(a, b, lambda p, q: loops.cosine(keys[p], keys[q]), r)
    order = [*range(made.prefix), *kept, *(p for p in a if p not in pairs), *b]
    joins = {p: order.index(q) for p, q in pairs.items()}
    sizes = made.sizes(i)
    rows = loops.means(made.x[i].tolist(), order, joins, sizes)
    total = [sizes[own] + sum(sizes[p] for p, slot in joins.items() if slot == s) for s, own in enumerate(order)]
    slots = [joins[p] if p in joins else order.index(p) for p in range(made.count)]
    return rows, total, slots


@pytest.mark.parametrize("block", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("prefix", "count", "r"), [(p, n, r) for p in (0, 1, 2, 5) for n in (14, 15) for r in (1, 3, (n - p) // 2)]
)
def test_rows_sizes_and_slots_equal_the_loop_written_reference(seen, loops, prefix, count, r, block):
    made = seen(2, count, prefix, sized=block > 1, seed=count + prefix + r)
    plan = PiToMe.plan(made.site(count - r, block=block, depth=4))
    rows, size = plan.apply(made.x, made.size)
    for i in range(2):
        margin = 0.75 - 0.75 * (block - 1) / 4
        want, total, slots = reference(made, i, r, margin, block <= 2, loops)
        torch.testing.assert_close(rows[i], torch.tensor(want), **SUM_ROUNDING)
        assert size[i].tolist() == total
        assert plan.slots()[i].tolist() == slots


@pytest.mark.parametrize(("block", "all_match"), [(1, True), (2, True), (3, False)])
@pytest.mark.parametrize("first", ["bsm", "pitome"])
def test_the_middle_block_belongs_to_the_first_half_and_first_turns_the_halves(seen, loops, block, all_match, first):
    made = seen(1, 15, 1, seed=3)
    plan = PiToMe.plan(made.site(12, block=block, depth=3, options={"first": first, "margin": "0.9"}))
    margin = 0.9 - 0.9 * (block - 1) / 3
    slots = reference(made, 0, 3, margin, all_match == (first == "bsm"), loops)[2]
    assert plan.slots()[0].tolist() == slots


def test_rare_patches_are_protected_however_near_they_are_to_another(seen):
    made = seen(1, 15, 1, sized=False)
    made.tap.k[:, :, 1:11] = torch.tensor([1.0, 0, 0, 0])  # ten alike
    made.tap.k[:, :, 11:] = torch.eye(4)[1:].repeat(2, 1)[:4]  # two pairs of twins
    plan = PiToMe.plan(made.site(10, block=2, depth=2))
    assert set(plan.merged[0].tolist()) <= set(range(1, 11))
    assert set(range(11, 15)) <= set(plan.order[0].tolist())


@pytest.mark.parametrize(("ratio", "last"), [("0.975", 151), ("0.95", 111), ("0.925", 82), ("0.9", 60), ("0.875", 44)])
def test_token_counts_are_the_published_ones(ratio, last):
    now = 197
    for _ in range(12):
        now = PiToMe.tokens_after(now, 1, "ratio", float(ratio))
    assert now == last


def test_r_is_the_floor_of_the_paper_s_own_floating_point_expression():
    assert 25 - 25 * 0.56 == 10.999999999999998  # and not 11
    assert PiToMe.tokens_after(26, 1, "ratio", 0.56) == 26 - 10
    assert PiToMe.tokens_after(21, 1, "ratio", 0.2) == 11  # at most half


def test_proportional_attention_is_off_as_in_the_released_models():
    assert not PiToMe.tracks_size(parse_schedule("pitome:ratio=0.9").options)
    assert PiToMe.tracks_size(parse_schedule("pitome:ratio=0.9,prop=on").options)

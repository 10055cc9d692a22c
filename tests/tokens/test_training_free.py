"""What every training-free method that decides inside a block promises, on random blocks."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as draw

from edgevit.tokens import method

# method, block of 4, options: every way to decide that a method has
WAYS = [
    ("tomecis", 1, {}),
    ("pitome", 1, {}),
    ("pitome", 4, {}),
    ("mctf", 2, {}),
    ("tofu", 1, {}),
    ("tofu", 4, {}),
    ("atm", 1, {}),
    ("atm", 4, {}),
    ("diffrate", 1, {}),
    ("diffrate", 1, {"prune": "0"}),
    ("diffrate", 1, {"prune": "1"}),
]
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of at most 20 terms in another order
FEW = settings(max_examples=12, deadline=None, derandomize=True)


@draw.composite
def cases(choose):
    """Prefix, tokens before, tokens behind (at most half of the patches go), seed, sizes or none."""
    prefix = choose(draw.sampled_from((1, 2, 5)))
    count = prefix + choose(draw.integers(2, 14))
    out = count - choose(draw.integers(1, (count - prefix) // 2))
    return prefix, count, out, choose(draw.integers(0, 999)), choose(draw.booleans())


def plan_of(way, made, out, lowering="gather"):
    name, block, options = way
    return method(name).plan(made.site(out, lowering, block=block, depth=4, options=options))


@pytest.mark.parametrize("way", WAYS, ids=str)
@FEW
@given(case=cases())
def test_lowerings_agree_and_each_image_is_decided_alone(seen, way, case):
    prefix, count, out, seed, sized = case
    made = seen(3, count, prefix, sized, seed)
    plan = plan_of(way, made, out)
    rows, size = plan.apply(made.x, made.size)
    assert rows.shape == (3, out, 6)
    other_rows, other_size = plan_of(way, made, out, "matmul").apply(made.x, made.size)
    torch.testing.assert_close(other_rows, rows, **ROUNDING)
    for i in range(3):
        one = made.image(i)
        alone, alone_size = plan_of(way, one, out).apply(one.x, one.size)
        torch.testing.assert_close(alone[0], rows[i], **ROUNDING)
        assert (alone_size is None) is (size is None) is (other_size is None)
        if size is not None:
            torch.testing.assert_close(alone_size[0], size[i], **ROUNDING)
            torch.testing.assert_close(other_size[i], size[i], **ROUNDING)


@pytest.mark.parametrize("way", WAYS, ids=str)
@FEW
@given(case=cases())
def test_prefix_survives_and_slots_tell_where_each_token_went(seen, way, case):
    prefix, count, out, seed, sized = case
    made = seen(2, count, prefix, sized, seed)
    plan = plan_of(way, made, out)
    rows, size = plan.apply(made.x, made.size)
    torch.testing.assert_close(rows[:, :prefix], made.x[:, :prefix])
    assert size is None or size[:, :prefix].eq(1).all()
    assert not plan.dropped()[:, :prefix].any()
    assert plan.restore(rows) is None
    marks, _ = plan.apply(torch.eye(count).expand(2, -1, -1), made.size)  # row i marks token i
    living = ~plan.dropped()
    shown = (marks.transpose(1, 2) > 0) & living.unsqueeze(-1)  # [B, N, N']
    assert torch.equal(shown.sum(dim=-1), living.long())
    assert torch.equal(shown.long().argmax(dim=-1)[living], plan.slots()[living])
    source = plan.source()
    assert source[:, :prefix].eq(torch.arange(prefix)).all()
    assert torch.equal(plan.slots().gather(1, source), torch.arange(out).expand(2, -1))
    assert living.gather(1, source).all()


@pytest.mark.parametrize("way", [w for w in WAYS if w[0] != "diffrate"], ids=str)
@FEW
@given(case=cases())
def test_sizes_are_conserved(seen, way, case):
    prefix, count, out, seed, sized = case
    made = seen(2, count, prefix, sized, seed)
    _, size = plan_of(way, made, out).apply(made.x, made.size)
    before = made.size.sum(dim=1) if sized else torch.full((2,), float(count))
    assert torch.equal(size.sum(dim=1), before)  # whole numbers


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_tokens_that_are_all_alike_give_no_nan_in_half_precision(seen, way, value):
    made = seen(1, 15, 1)
    same = {f: torch.full_like(getattr(made.tap, f), value).half() for f in ("q", "k", "v")}
    tap = made.tap._replace(**same, probabilities=torch.full((1, 2, 15, 15), 1 / 15).half())
    made = dataclasses.replace(made, tap=tap, x=torch.full_like(made.x, value).half(), size=made.size.half())
    rows, size = plan_of(way, made, 9).apply(made.x, made.size)
    assert rows.dtype == size.dtype == torch.float16
    assert torch.isfinite(rows).all()
    assert torch.isfinite(size.log()).all()

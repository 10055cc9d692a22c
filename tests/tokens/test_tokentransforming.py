"""Token Transforming (our reconstruction) against a slow reference: one output row, one weight at a time."""

import math

import pytest
import torch

from edgevit.errors import ScheduleError
from edgevit.stages import Tap
from edgevit.tokens.protocol import Site
from edgevit.tokens.schedule import parse_schedule
from edgevit.tokens.tokentransforming import TokenTransforming

HEADS, WIDTH, CHANNELS, SCALE = 2, 4, 6, 0.5
SUM_ROUNDING = {"rtol": 1e-4, "atol": 1e-5}  # cosines are divided by 0.05, so their rounding grows twentyfold


def drawn(batch, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, HEADS, count, WIDTH, generator=generator) for _ in range(2))
    sizes = torch.rand(batch, count, generator=generator) * 3 + 0.5
    return Tap(q, k, torch.zeros_like(k), SCALE), torch.randn(batch, count, CHANNELS, generator=generator), sizes


def plan(tap, x, prefix, keep, size=None, lowering="gather", **options):
    return TokenTransforming.plan(Site(tap, x, size, prefix, prefix + keep, options=options, lowering=lowering))


def reference(tap, image, x, sizes, prefix, keep, tau=0.05, own=8.0):
    """→ rows, sizes, slots of one image."""
    q, k, x = tap.q[image].tolist(), tap.k[image].tolist(), x[image].tolist()
    count = len(x)
    attention = [0.0] * count
    for head in range(len(q)):
        powers = [
            math.exp(SCALE * sum(a * b for a, b in zip(q[head][0], k[head][j], strict=True))) for j in range(count)
        ]
        attention = [old + power / sum(powers) for old, power in zip(attention, powers, strict=True)]
    kept = sorted(range(prefix, count), key=lambda j: -attention[j])[:keep]
    mean = [[sum(head[j][c] for head in k) / len(k) for c in range(WIDTH)] for j in range(count)]
    weights = []
    for i in kept:
        row = []
        for j in range(prefix, count):
            cosine = (
                sum(a * b for a, b in zip(mean[i], mean[j], strict=True)) / math.hypot(*mean[i]) / math.hypot(*mean[j])
            )
            row.append(math.exp(cosine / tau) * (own if i == j else 1) * sizes[j])
        weights.append([w / sum(row) for w in row])
    rows, new, slots = x[:prefix], sizes[:prefix], list(range(prefix))
    for row in weights:
        rows.append([sum(w * x[prefix + j][c] for j, w in enumerate(row)) for c in range(CHANNELS)])
        new.append(sum(sizes[prefix + j] * w / sum(other[j] for other in weights) for j, w in enumerate(row)))
    for j in range(count - prefix):
        given = [row[j] for row in weights]
        slots.append(prefix + (kept.index(prefix + j) if prefix + j in kept else given.index(max(given))))
    return rows, new, slots


CASES = [(prefix, count, keep) for prefix in (1, 2, 5) for count in (14, 15) for keep in (1, 4, count - prefix - 1)]


@pytest.mark.parametrize("sized", [False, True], ids=["sizes_none", "sizes_given"])
@pytest.mark.parametrize(("prefix", "count", "keep"), CASES)
def test_rows_sizes_and_slots_equal_the_loop_written_reference(prefix, count, keep, sized):
    tap, x, sizes = drawn(2, count, seed=count * 100 + prefix * 10 + keep)
    size = sizes if sized else None
    mixture = plan(tap, x, prefix, keep, size)
    rows, new = mixture.apply(x, size)
    for image in range(2):
        given = sizes[image].tolist() if sized else [1.0] * count
        want, want_sizes, slots = reference(tap, image, x, given, prefix, keep)
        torch.testing.assert_close(rows[image], torch.tensor(want), **SUM_ROUNDING)
        torch.testing.assert_close(new[image], torch.tensor(want_sizes), **SUM_ROUNDING)
        assert mixture.slots()[image].tolist() == slots
    assert torch.equal(rows[:, :prefix], x[:, :prefix])
    assert not mixture.dropped().any()


def test_size_is_conserved_over_steps_and_differs_between_tokens():
    _, x, size = drawn(2, 15)
    total = size.sum(dim=1)
    for step, keep in enumerate((9, 5)):
        tap, _, _ = drawn(2, x.shape[1], seed=step)
        x, size = plan(tap, x, 1, keep, size).apply(x, size)
        torch.testing.assert_close(size.sum(dim=1), total, rtol=1e-5, atol=0)
    assert (size.amax(dim=1) > 1.5 * size[:, 1:].amin(dim=1)).all()


def test_a_patch_may_go_into_several_and_a_token_is_mostly_itself():
    tap, x, _ = drawn(2, 14)
    weights = plan(tap, x, 1, 5, tau="1").weights
    assert (weights > 0).all()
    kept = plan(tap, x, 1, 5)
    own = kept.weights.gather(2, kept.kept.unsqueeze(-1))
    assert (own.squeeze(-1) == kept.weights.amax(dim=-1)).all()


def test_options_are_temperature_and_own_weight():
    tap, x, _ = drawn(1, 14)
    rows, _ = plan(tap, x, 1, 5, tau="0.5", own="3").apply(x, None)
    want, _, _ = reference(tap, 0, x, [1.0] * 14, 1, 5, tau=0.5, own=3.0)
    torch.testing.assert_close(rows[0], torch.tensor(want), **SUM_ROUNDING)


@pytest.mark.parametrize("option", ["tau=0", "tau=cold", "own=0.5", "own=1e9", "tau=nan"])
def test_wrong_options_are_refused(option):
    with pytest.raises(ScheduleError, match="must be a number from"):
        parse_schedule(f"tokentransforming:keep=0.7,{option}")


def test_lowerings_agree_and_each_image_is_decided_alone():
    tap, x, sizes = drawn(4, 15)
    together, size = plan(tap, x, 2, 6, sizes).apply(x, sizes)
    other, _ = plan(tap, x, 2, 6, sizes, "matmul").apply(x, sizes)
    torch.testing.assert_close(together, other, **SUM_ROUNDING)
    for i in range(4):
        one = slice(i, i + 1)
        alone = plan(Tap(tap.q[one], tap.k[one], tap.v[one], SCALE), x[one], 2, 6, sizes[one])
        rows, new = alone.apply(x[one], sizes[one])
        torch.testing.assert_close(rows, together[one], **SUM_ROUNDING)
        torch.testing.assert_close(new, size[one], **SUM_ROUNDING)


def test_half_precision_keeps_its_dtype_and_weighs_in_float32():
    tap, x, _ = drawn(2, 14)
    half = Tap(tap.q.half(), tap.k.half(), tap.v.half(), SCALE)
    rows, size = plan(half, x.half(), 1, 4).apply(x.half(), None)
    exact, _ = plan(Tap(half.q.float(), half.k.float(), half.v.float(), SCALE), x, 1, 4).apply(x.half().float(), None)
    assert rows.dtype == size.dtype == torch.float16
    torch.testing.assert_close(rows.float(), exact, rtol=0, atol=8e-3)  # weights and rows have 11 bits
    zero, _ = plan(tap._replace(k=tap.k * 0), x, 1, 4, own="1", tau="0.01").apply(x, None)
    torch.testing.assert_close(zero[:, 1:], x[:, 1:].mean(dim=1, keepdim=True).expand(-1, 4, -1), **SUM_ROUNDING)


def test_a_patch_that_resembles_nothing_kept_still_gives_its_size_away():
    tap, x, _ = drawn(1, 14)
    tap.k[:, :, 1:5] = tap.q[:, :, :1] * 10  # the kept ones look all alike,
    tap.k[:, :, 5:] = -tap.q[:, :, :1]  # the others point the other way: their weight is exp(-200) of the own
    rows, size = plan(tap, x, 1, 4, tau="0.01").apply(x, None)
    assert torch.isfinite(rows).all()
    assert size.sum().item() == pytest.approx(14)

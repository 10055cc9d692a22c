"""TPS against a slow reference: one image, one token at a time, as the paper's text says it."""

import math

import pytest
import torch

from edgevit.stages import Tap
from edgevit.tokens.protocol import Site
from edgevit.tokens.tps import TPS

HEADS, WIDTH, CHANNELS, SCALE = 2, 4, 6, 0.5
SUM_ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of at most 15 terms, in another order


def drawn(batch, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, HEADS, count, WIDTH, generator=generator) for _ in range(2))
    return Tap(q, k, torch.zeros_like(k), SCALE), torch.randn(batch, count, CHANNELS, generator=generator)


def plan(tap, x, prefix, keep, lowering="gather"):
    return TPS.plan(Site(tap, x, None, prefix, prefix + keep, lowering=lowering))


def cosine(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v))


def reference(q, k, x, prefix, keep):
    """q, k: [H][N][d], x: [N][C] as Python lists → rows, group sizes, slot of each token."""
    count = len(x)
    attention = [0.0] * count
    for head in range(len(q)):
        powers = [
            math.exp(SCALE * sum(a * b for a, b in zip(q[head][0], k[head][j], strict=True))) for j in range(count)
        ]
        attention = [old + power / sum(powers) for old, power in zip(attention, powers, strict=True)]
    order = sorted(range(prefix, count), key=lambda j: -attention[j])
    kept, pruned = order[:keep], order[keep:]
    host = {i: max(kept, key=lambda j: cosine(x[i], x[j])) for i in pruned}
    rows, sizes, slots = list(x[:prefix]), [1.0] * prefix, list(range(count))
    for j in kept:
        guests = [i for i in pruned if host[i] == j]
        weights = [math.e] + [math.exp(cosine(x[i], x[j])) for i in guests]
        group = [x[j]] + [x[i] for i in guests]
        rows.append(
            [sum(w * row[c] for w, row in zip(weights, group, strict=True)) / sum(weights) for c in range(len(x[0]))]
        )
        sizes.append(1.0 + len(guests))
        for i in [j, *guests]:
            slots[i] = len(rows) - 1
    return rows, sizes, slots


CASES = [(prefix, count, keep) for prefix in (1, 2, 5) for count in (14, 15) for keep in (1, 4, count - prefix - 1)]


@pytest.mark.parametrize(("prefix", "count", "keep"), CASES)
def test_rows_sizes_and_slots_equal_the_loop_written_reference(prefix, count, keep):
    tap, x = drawn(3, count, seed=count * 100 + prefix * 10 + keep)
    squeeze = plan(tap, x, prefix, keep)
    rows, sizes = squeeze.apply(x, None)
    for image in range(3):
        want, want_sizes, slots = reference(
            tap.q[image].tolist(), tap.k[image].tolist(), x[image].tolist(), prefix, keep
        )
        torch.testing.assert_close(rows[image], torch.tensor(want), **SUM_ROUNDING)
        assert sizes[image].tolist() == want_sizes
        assert squeeze.slots()[image].tolist() == slots
    assert not squeeze.dropped().any()


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_prefix_rows_are_untouched_bit_by_bit_even_when_patches_equal_them(prefix):
    tap, x = drawn(2, 14)
    x[:, prefix:] = x[:, :1]  # the class token is the nearest of all
    rows, _ = plan(tap, x, prefix, 3).apply(x, None)
    assert torch.equal(rows[:, :prefix], x[:, :prefix])


def test_the_unlike_weigh_less_than_the_alike():
    tap, x = drawn(1, 3)
    tap.k[:, :, 1] = tap.q[:, :, 0] * 10  # patch 1 is kept
    x[0, 1], x[0, 2] = torch.eye(CHANNELS)[0], -torch.eye(CHANNELS)[0]  # patch 2 is its opposite
    rows, _ = plan(tap, x, 1, 1).apply(x, None)
    assert rows[0, 1, 0].item() == pytest.approx((math.e - math.exp(-1)) / (math.e + math.exp(-1)), rel=1e-5)


@pytest.mark.parametrize(("prefix", "count", "keep"), CASES)
def test_gather_and_matmul_lowerings_agree(prefix, count, keep):
    tap, x = drawn(2, count)
    rows, sizes = plan(tap, x, prefix, keep).apply(x, None)
    other, other_sizes = plan(tap, x, prefix, keep, "matmul").apply(x, None)
    torch.testing.assert_close(rows, other, **SUM_ROUNDING)
    assert torch.equal(sizes, other_sizes)


@pytest.mark.parametrize("lowering", ["gather", "matmul"])
def test_each_image_is_decided_alone(lowering):
    tap, x = drawn(4, 14)
    together, _ = plan(tap, x, 2, 5, lowering).apply(x, None)
    for i in range(4):
        one = slice(i, i + 1)
        alone, _ = plan(Tap(tap.q[one], tap.k[one], tap.v[one], SCALE), x[one], 2, 5, lowering).apply(x[one], None)
        torch.testing.assert_close(alone, together[one], **SUM_ROUNDING)


def test_zero_features_give_no_nan_and_half_precision_keeps_its_dtype():
    tap, x = drawn(2, 14)
    rows, _ = plan(tap, x * 0, 1, 4).apply(x * 0, None)
    assert torch.isfinite(rows).all()
    half, _ = plan(tap, x.half(), 1, 4).apply(x.half(), None)
    exact, _ = plan(tap, x.half().float(), 1, 4).apply(x, None)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=4e-3)  # 11 bits of mantissa on values up to 4


def test_counts_are_evits_without_its_fused_token():
    assert [TPS.tokens_after(197, 1, "keep", keep) for keep in (0.7, 0.5, 1.0)] == [139, 99, 197]
    assert TPS.default_blocks(12) == (4, 7, 10)

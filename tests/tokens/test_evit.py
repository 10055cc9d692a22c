"""EViT against a slow reference: one image, one token at a time, as the paper's text says it."""

import math

import pytest
import torch

from edgevit.stages import Tap
from edgevit.tokens.evit import EViT
from edgevit.tokens.protocol import Site
from edgevit.tokens.scores import class_attention

HEADS, WIDTH, CHANNELS, SCALE = 2, 4, 6, 0.5
SUM_ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of at most 15 terms, in another order


def drawn(batch, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, HEADS, count, WIDTH, generator=generator) for _ in range(2))
    return Tap(q, k, torch.zeros_like(k), SCALE, None), torch.randn(batch, count, CHANNELS, generator=generator)


def plan(tap, prefix, keep, lowering="gather"):
    return EViT.plan(Site(tap, tap.k[:, 0], None, prefix, prefix + keep + 1, lowering=lowering))


def reference(q, k, x, prefix, keep, log_size=None):
    """q, k: [H][N][d], x: [N][C] as Python lists → rows, slot of each token, attention of each patch."""
    count = len(x)
    attention = [0.0] * count
    for head in range(len(q)):
        logits = [SCALE * sum(a * b for a, b in zip(q[head][0], k[head][j], strict=True)) for j in range(count)]
        if log_size is not None:
            logits = [value + bias for value, bias in zip(logits, log_size, strict=True)]
        powers = [math.exp(value) for value in logits]
        for j in range(count):
            attention[j] += powers[j] / sum(powers) / len(q)
    order = sorted(range(prefix, count), key=lambda j: -attention[j])
    kept, fused = order[:keep], order[keep:]
    rows = [x[i] for i in range(prefix)] + [x[j] for j in kept]
    rows.append([sum(attention[j] * x[j][c] for j in fused) for c in range(len(x[0]))])
    slots = list(range(count))
    for place, j in enumerate(kept):
        slots[j] = prefix + place
    for j in fused:
        slots[j] = prefix + keep
    return rows, slots, attention


CASES = [(prefix, count, keep) for prefix in (1, 2, 5) for count in (14, 15) for keep in (1, 4, count - prefix - 2)]


@pytest.mark.parametrize(("prefix", "count", "keep"), CASES)
def test_rows_order_and_fused_token_equal_the_loop_written_reference(prefix, count, keep):
    tap, x = drawn(3, count, seed=count * 100 + prefix * 10 + keep)
    selection = plan(tap, prefix, keep)
    rows, size = selection.apply(x, None)
    assert size is None
    assert rows.shape == (3, prefix + keep + 1, CHANNELS)
    for image in range(3):
        want, slots, attention = reference(
            tap.q[image].tolist(), tap.k[image].tolist(), x[image].tolist(), prefix, keep
        )
        torch.testing.assert_close(rows[image], torch.tensor(want), **SUM_ROUNDING)
        assert selection.slots()[image].tolist() == slots
        torch.testing.assert_close(
            class_attention(tap, prefix)[image], torch.tensor(attention[prefix:]), **SUM_ROUNDING
        )


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_prefix_rows_are_untouched_bit_by_bit(prefix):
    tap, x = drawn(2, 14)
    rows, _ = plan(tap, prefix, 3).apply(x, None)
    assert torch.equal(rows[:, :prefix], x[:, :prefix])


def test_prefix_stays_even_when_the_class_token_ignores_it():
    tap, x = drawn(1, 14)
    tap.k[:, :, 1:5] = -tap.q[:, :, :1] * 100  # the registers get no attention at all
    selection = plan(tap, 5, 3)
    rows, _ = selection.apply(x, None)
    assert torch.equal(rows[:, :5], x[:, :5])
    assert not selection.dropped()[:, :5].any()


def test_fused_weights_are_the_raw_attention_not_its_share():
    tap, x = drawn(1, 14)
    x[:, 1:] = 1.0
    rows, _ = plan(tap, 1, 3).apply(x, None)
    expected = class_attention(tap, 1).sort(descending=True).values[:, 3:].sum()
    assert expected < 0.95  # a normalized fuse would give 1
    torch.testing.assert_close(rows[0, -1], expected.expand(CHANNELS), **SUM_ROUNDING)


def test_fused_token_competes_in_the_next_step():
    tap, x = drawn(1, 14)
    rows, _ = plan(tap, 1, 6).apply(x, None)
    later, _ = drawn(1, rows.shape[1], seed=1)
    later.k[:, :, -1] = later.q[:, :, 0] * 10  # the fused token's key is what the class token looks for
    kept, _ = plan(later, 1, 2).apply(rows, None)
    assert torch.equal(kept[:, 1], rows[:, -1])
    later.k[:, :, -1] = -later.q[:, :, 0] * 10
    selection = plan(later, 1, 2)
    assert selection.dropped()[0, -1]


def test_log_sizes_enter_the_row_softmax():
    tap, x = drawn(1, 14)
    log_size = torch.linspace(0, 2, 14).unsqueeze(0)
    selection = plan(tap._replace(log_size=log_size), 1, 4)
    rows, _ = selection.apply(x, None)
    want, _, _ = reference(tap.q[0].tolist(), tap.k[0].tolist(), x[0].tolist(), 1, 4, log_size[0].tolist())
    torch.testing.assert_close(rows[0], torch.tensor(want), **SUM_ROUNDING)


@pytest.mark.parametrize(("prefix", "count", "keep"), CASES)
def test_gather_and_matmul_lowerings_agree(prefix, count, keep):
    tap, x = drawn(2, count)
    rows, _ = plan(tap, prefix, keep, "gather").apply(x, None)
    other, _ = plan(tap, prefix, keep, "matmul").apply(x, None)
    torch.testing.assert_close(rows, other, **SUM_ROUNDING)


@pytest.mark.parametrize("lowering", ["gather", "matmul"])
def test_each_image_is_decided_alone(lowering):
    tap, x = drawn(4, 14)
    together, _ = plan(tap, 2, 5, lowering).apply(x, None)
    for i in range(4):
        one = slice(i, i + 1)
        alone, _ = plan(Tap(tap.q[one], tap.k[one], tap.v[one], SCALE, None), 2, 5, lowering).apply(x[one], None)
        torch.testing.assert_close(alone, together[one], **SUM_ROUNDING)


@pytest.mark.parametrize(("prefix", "count", "keep"), CASES)
def test_slots_and_dropped_tell_what_apply_did(prefix, count, keep):
    tap, _ = drawn(2, count)
    selection = plan(tap, prefix, keep)
    rows, _ = selection.apply(torch.eye(count).expand(2, -1, -1), None)
    members = (rows > 0).transpose(1, 2)  # [B, N, N']: attention is positive, so a fused token shows too
    assert members.sum(dim=-1).eq(1).all()
    assert torch.equal(members.to(torch.int64).argmax(dim=-1), selection.slots())
    assert selection.dropped().sum(dim=1).eq(count - prefix - keep).all()
    assert torch.equal(selection.dropped(), selection.slots() == prefix + keep)


@pytest.mark.parametrize(
    ("keep", "tokens"),
    [(0.9, (179, 163, 148)), (0.7, (140, 100, 72)), (0.5, (100, 52, 28)), (1.0, (197, 197, 197))],
)
def test_token_counts_are_the_published_ones(keep, tokens):
    now, counts = 197, []
    for _ in range(3):
        now = EViT.tokens_after(now, 1, "keep", keep)
        counts.append(now)
    assert tuple(counts) == tokens


def test_keep_counts_are_ceilings_of_the_decimal_not_of_its_binary_neighbour():
    assert EViT.tokens_after(11, 1, "keep", 0.7) == 1 + 7 + 1  # 0.7 * 10 is 7.000000000000001 in binary
    assert EViT.tokens_after(101, 1, "keep", 0.29) == 1 + 29 + 1  # and 0.29 * 100 is 28.999999999999996


def test_a_step_never_adds_tokens():
    for tokens in range(2, 12):
        for keep in (0.01, 0.3, 0.9, 0.99, 1.0):
            assert EViT.tokens_after(tokens, 1, "keep", keep) <= tokens

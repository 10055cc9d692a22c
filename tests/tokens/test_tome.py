"""ToMe against a slow reference: one image, one token, one merge at a time, as the paper's text says it."""

import math

import pytest
import torch

from edgevit.stages import Tap
from edgevit.tokens.protocol import Site
from edgevit.tokens.tome import ToMe

HEADS, WIDTH, CHANNELS = 2, 4, 6
SUM_ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of at most 15 terms, in another order


def tap_of(keys):
    """A tap that holds only what ToMe reads."""
    return Tap(q=torch.zeros_like(keys), k=keys, v=torch.zeros_like(keys), scale=1.0, log_size=None)


def drawn(batch, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(batch, HEADS, count, WIDTH, generator=generator)
    x = torch.randn(batch, count, CHANNELS, generator=generator)
    sizes = torch.randint(1, 5, (batch, count), generator=generator).float()
    return keys, x, sizes


def plan(keys, prefix, r, size=None, lowering="gather"):
    site = Site(tap_of(keys), keys[:, 0], size, prefix, keys.shape[2] - r, lowering=lowering)
    return ToMe.plan(site)


def reference(keys, x, sizes, prefix, r):
    """keys: [H][N][d], x: [N][C], sizes: [N] or None, all Python lists → rows, sizes, slot of each input token."""
    count = len(x)
    metric = []
    for i in range(count):
        mean = [sum(head[i][c] for head in keys) / len(keys) for c in range(len(keys[0][i]))]
        length = math.sqrt(sum(v * v for v in mean))
        metric.append([v / length for v in mean])
    a = [i for i in range(prefix, count) if i % 2 == 0]
    b = [i for i in range(prefix, count) if i % 2 == 1]
    partner, score = {}, {}
    for i in a:
        cosines = [sum(p * q for p, q in zip(metric[i], metric[j], strict=True)) for j in b]
        if cosines:
            score[i] = max(cosines)
            partner[i] = b[cosines.index(score[i])]
    merges = {i: partner[i] for i in sorted(score, key=lambda i: -score[i])[:r]}
    size = [1.0] * count if sizes is None else list(sizes)
    rows, new_sizes, slots = [], [], [0] * count
    for position in [*range(prefix), *(i for i in a if i not in merges), *b]:
        group = [position, *(i for i, j in merges.items() if j == position)]
        total = sum(size[i] for i in group)
        rows.append([sum(size[i] * x[i][c] for i in group) / total for c in range(len(x[0]))])
        new_sizes.append(total)
        for i in group:
            slots[i] = len(rows) - 1
    return rows, new_sizes, slots


def amounts(count, prefix):
    most = (count - prefix) // 2
    return sorted({0, 1, min(3, most), most})


CASES = [(prefix, count, r) for prefix in (0, 1, 2, 5) for count in (14, 15) for r in amounts(count, prefix)]


@pytest.mark.parametrize("sized", [False, True], ids=["sizes_none", "sizes_given"])
@pytest.mark.parametrize(("prefix", "count", "r"), CASES)
def test_rows_order_and_sizes_equal_the_loop_written_reference(prefix, count, r, sized):
    keys, x, sizes = drawn(3, count, seed=count * 100 + prefix * 10 + r)
    size = sizes if sized else None
    matching = plan(keys, prefix, r, size)
    rows, new_sizes = matching.apply(x, size)
    assert rows.shape == (3, count - r, CHANNELS)
    for image in range(3):
        given = size[image].tolist() if sized else None
        want, want_sizes, want_slots = reference(keys[image].tolist(), x[image].tolist(), given, prefix, r)
        torch.testing.assert_close(rows[image], torch.tensor(want), **SUM_ROUNDING)
        assert new_sizes[image].tolist() == want_sizes  # whole numbers: exact in float32
        assert matching.slots()[image].tolist() == want_slots


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_several_sources_may_share_one_target(prefix):
    keys = torch.randn(1, HEADS, 14, WIDTH, generator=torch.Generator().manual_seed(3))
    patches = torch.arange(prefix, 14)
    target = int(patches[patches % 2 == 1][1])
    for source in patches[patches % 2 == 0]:
        keys[:, :, source] = keys[:, :, target]  # every A token is nearest to the same B token
    most = (14 - prefix) // 2
    matching = plan(keys, prefix, most)
    _, size = matching.apply(torch.ones(1, 14, CHANNELS), None)
    assert size.max() == most + 1
    assert size.sum() == 14


@pytest.mark.parametrize("lowering", ["gather", "matmul"])
@pytest.mark.parametrize(("prefix", "count"), [(0, 14), (1, 15), (2, 14), (5, 15)])
def test_mass_and_token_count_are_conserved_over_many_steps(prefix, count, lowering):
    keys, x, _ = drawn(2, count)
    size, start = None, x.sum(dim=1)
    prefix_rows = x[:, :prefix].clone()
    for step in range(3):
        now = x.shape[1]
        keys, _, _ = drawn(2, now, seed=step)
        x, size = plan(keys, prefix, (now - prefix) // 3, size, lowering).apply(x, size)
        assert size.sum(dim=1).tolist() == [count, count]
        torch.testing.assert_close((size.unsqueeze(-1) * x).sum(dim=1), start, rtol=1e-5, atol=1e-5)
        assert torch.equal(x[:, :prefix], prefix_rows)  # x * 1 / 1 is exact
        assert size[:, :prefix].eq(1).all()


@pytest.mark.parametrize(("prefix", "count", "r"), CASES)
def test_gather_and_matmul_lowerings_agree(prefix, count, r):
    keys, x, sizes = drawn(2, count)
    rows, size = plan(keys, prefix, r, sizes, "gather").apply(x, sizes)
    other_rows, other_size = plan(keys, prefix, r, sizes, "matmul").apply(x, sizes)
    torch.testing.assert_close(rows, other_rows, **SUM_ROUNDING)
    assert torch.equal(size, other_size)


@pytest.mark.parametrize("lowering", ["gather", "matmul"])
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_each_image_is_decided_alone(prefix, lowering):
    keys, x, sizes = drawn(4, 14)
    together, together_size = plan(keys, prefix, 3, sizes, lowering).apply(x, sizes)
    for i in range(4):
        one = slice(i, i + 1)
        rows, size = plan(keys[one], prefix, 3, sizes[one], lowering).apply(x[one], sizes[one])
        torch.testing.assert_close(rows, together[one], **SUM_ROUNDING)
        assert torch.equal(size, together_size[one])


@pytest.mark.parametrize(("prefix", "count", "r"), CASES)
def test_slots_tell_where_apply_put_each_token(prefix, count, r):
    keys, _, _ = drawn(2, count)
    matching = plan(keys, prefix, r)
    identity = torch.eye(count).expand(2, -1, -1)  # row i marks token i, so a merged row shows its members
    rows, size = matching.apply(identity, None)
    members = (rows > 0).transpose(1, 2)  # [B, N, N']
    assert members.sum(dim=-1).eq(1).all()
    assert torch.equal(members.to(torch.int64).argmax(dim=-1), matching.slots())
    assert torch.equal(members.sum(dim=1).float(), size)
    assert not matching.dropped().any()
    assert matching.dropped().shape == (2, count)


def test_scale_of_the_keys_does_not_matter():
    keys, x, _ = drawn(2, 14)
    rows, _ = plan(keys, 1, 4).apply(x, None)
    scaled, _ = plan(keys * 1000, 1, 4).apply(x, None)
    torch.testing.assert_close(rows, scaled, **SUM_ROUNDING)


def test_zero_keys_give_no_nan():
    _, x, _ = drawn(1, 14)
    rows, size = plan(torch.zeros(1, HEADS, 14, WIDTH), 1, 4).apply(x, None)
    assert torch.isfinite(rows).all()
    assert size.sum() == 14


def test_half_precision_stream_keeps_its_dtype_and_decides_in_float32():
    keys, x, _ = drawn(2, 14)
    keys = keys.half()
    rows, size = plan(keys, 1, 4).apply(x.half(), None)
    assert rows.dtype == torch.float16
    assert size.dtype == torch.float16
    exact, _ = plan(keys.float(), 1, 4).apply(x, None)
    torch.testing.assert_close(rows.float(), exact, rtol=0, atol=4e-3)  # 11 bits of mantissa on values up to 4


@pytest.mark.parametrize(
    ("tokens", "prefix", "r", "after"),
    [(197, 1, 8, 189), (21, 1, 16, 11), (20, 2, 9, 11), (20, 2, 10, 11), (6, 5, 3, 6)],
)
def test_r_is_capped_at_half_of_the_patches(tokens, prefix, r, after):
    assert ToMe.tokens_after(tokens, prefix, "r", r) == after

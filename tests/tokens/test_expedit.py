"""Expedit against a slow reference: one patch, one cluster at a time, as the paper's text says it."""

import math

import pytest
import torch
import torch.nn.functional as F

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError
from edgevit.reduce import reduce
from edgevit.stages import Tap
from edgevit.tokens.expedit import Expedit, cluster_grid
from edgevit.tokens.protocol import Site
from edgevit.tokens.schedule import parse_schedule

CHANNELS = 5
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}  # five rounds of float32 sums, each an input of the next


def drawn(batch, prefix, grid, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, prefix + grid[0] * grid[1], CHANNELS, generator=generator)


def plan(x, prefix, grid, count, **options):
    tap = Tap(*(x[:, None],) * 3, scale=1.0)
    return Expedit.plan(Site(tap, x, None, prefix, prefix + count, grid=grid, options=options))


def squared(u, v):
    return sum((a - b) ** 2 for a, b in zip(u, v, strict=True))


def reference(patches, grid, shape, tau, norm):
    """[n][C] → clusters [K][C], weights of the way back [n][K]. tau None: from the data."""
    (height, width), (down, across) = grid, shape
    image = torch.tensor(patches).T.reshape(1, -1, height, width)
    centers = F.adaptive_avg_pool2d(image, shape).flatten(2)[0].T.tolist()  # what the paper starts from
    if tau is None:
        nearest = sorted(min(squared(x, c) for c in centers) for x in patches)
        tau = 5 / nearest[len(patches) - len(patches) // 2 - 1]
    for _ in range(5):
        shares = []
        for place, x in enumerate(patches):
            row, column = place // width * down // height, place % width * across // width
            near = [abs(row - k // across) <= 2 and abs(column - k % across) <= 2 for k in range(down * across)]
            powers = [math.exp(-tau * squared(x, c)) if ok else 0.0 for c, ok in zip(centers, near, strict=True)]
            shares.append([power / sum(powers) for power in powers])
        centers = [
            [
                sum(s[k] * x[c] for s, x in zip(shares, patches, strict=True)) / sum(s[k] for s in shares)
                for c in range(CHANNELS)
            ]
            for k in range(down * across)
        ]
    back = []
    for x in patches:
        weights = [math.exp(-tau * squared(x, c)) for c in centers]
        last = sorted(weights)[-20:][0]
        weights = [w if w >= last else 0.0 for w in weights]
        length = sum(weights) if norm == "l1" else math.hypot(*weights)
        back.append([w / length for w in weights])
    return centers, back


CASES = [(0, (4, 4), (2, 2)), (1, (6, 6), (4, 4)), (2, (4, 8), (2, 4)), (1, (7, 5), (3, 3)), (1, (8, 8), (7, 7))]


@pytest.mark.parametrize(("tau", "norm"), [("0.3", "l2"), ("0.01", "l1"), (None, "l2")])
@pytest.mark.parametrize(("prefix", "grid", "shape"), CASES)
def test_clusters_and_rebuilt_patches_equal_the_loop_written_reference(prefix, grid, shape, tau, norm):
    x = drawn(2, prefix, grid)
    options = {"norm": norm} if tau is None else {"norm": norm, "tau": tau}
    clusters = plan(x, prefix, grid, shape[0] * shape[1], **options)
    rows, size = clusters.apply(x, None)
    later = rows * 2 + 1  # what the blocks between made of them
    restored = clusters.restore(later)
    assert size is None
    for image in range(2):
        patches = x[image, prefix:].tolist()
        want, back = reference(patches, grid, shape, None if tau is None else float(tau), norm)
        torch.testing.assert_close(rows[image, prefix:], torch.tensor(want), **ROUNDING)
        torch.testing.assert_close(restored[image, prefix:], torch.tensor(back) @ later[image, prefix:], **ROUNDING)
    assert torch.equal(rows[:, :prefix], x[:, :prefix])
    assert torch.equal(restored[:, :prefix], later[:, :prefix])
    assert not clusters.dropped().any()


def test_only_the_twenty_nearest_clusters_rebuild_a_patch():
    x = drawn(2, 1, (8, 8))
    clusters = plan(x, 1, (8, 8), 49, tau="0.01")
    assert (clusters.rebuild > 0).sum(dim=-1).eq(20).all()
    torch.testing.assert_close(clusters.rebuild.square().sum(dim=-1), torch.ones(2, 64), rtol=1e-5, atol=0)
    means = plan(x, 1, (8, 8), 49, tau="0.01", norm="l1").rebuild.sum(dim=-1)
    torch.testing.assert_close(means, torch.ones(2, 64), rtol=1e-5, atol=0)


def test_a_patch_never_joins_a_cluster_beyond_its_reach():
    x = drawn(1, 0, (8, 8))
    x[0, 63] = x[0, 0]  # the same features in opposite corners
    clusters = plan(x, 0, (8, 8), 64, tau="1")
    assert clusters.gather[0, 0, 63] == 0
    assert clusters.gather[0, 63, 63] > 0.1


@pytest.mark.parametrize("scale", [1e-2, 1, 1e2])
def test_without_tau_the_scale_of_the_features_does_not_matter(scale):
    x = drawn(1, 1, (6, 6))
    torch.testing.assert_close(
        plan(x, 1, (6, 6), 9).rebuild, plan(x * scale, 1, (6, 6), 9).rebuild, rtol=1e-3, atol=1e-5
    )  # rounding in distances grows fivefold in each of five rounds


def test_clear_clusters_come_back_as_they_were():
    x = torch.zeros(1, 16, CHANNELS)
    for cell in range(4):  # four flat quarters of a 4 x 4 grid
        for place in range(16):
            if (place // 8, place % 4 // 2) == divmod(cell, 2):
                x[0, place, cell] = 10.0
    clusters = plan(x, 0, (4, 4), 4)
    torch.testing.assert_close(clusters.restore(clusters.apply(x, None)[0]), x, rtol=1e-5, atol=1e-4)
    assert clusters.slots()[0].reshape(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    assert clusters.source().shape == (1, 4)


@pytest.mark.parametrize("value", [0.0, 60.0])
def test_flat_and_large_features_give_numbers_and_half_precision_keeps_its_dtype(value):
    x = torch.full((1, 37, CHANNELS), value)
    x[0, 5] *= 1000  # an outlier, as late blocks of real models have them
    clusters = plan(x.half(), 1, (6, 6), 9)
    rows = clusters.apply(x.half(), None)[0]
    assert rows.dtype == torch.float16
    assert torch.isfinite(rows).all()
    assert torch.isfinite(clusters.rebuild).all()


def test_each_image_is_decided_alone():
    x = drawn(3, 1, (6, 6))
    together = plan(x, 1, (6, 6), 9)
    for i in range(3):
        alone = plan(x[i : i + 1], 1, (6, 6), 9)
        torch.testing.assert_close(alone.gather, together.gather[i : i + 1], **ROUNDING)
        torch.testing.assert_close(alone.rebuild, together.rebuild[i : i + 1], **ROUNDING)


@pytest.mark.parametrize(
    ("grid", "count", "shape"),
    [
        ((14, 14), 49, (7, 7)),
        ((14, 14), 48, (6, 8)),
        ((14, 14), 200, None),
        ((14, 14), 13, None),
        ((16, 32), 128, (8, 16)),
        ((16, 32), 128 + 7, (9, 15)),
        ((2, 2), 1, (1, 1)),
    ],
)
def test_cluster_grids(grid, count, shape):
    assert cluster_grid(grid, count) == shape


@pytest.mark.parametrize(
    ("key", "value", "after"),
    [("keep", 0.25, 50), ("keep", 0.3, 65), ("keep", 1, 197), ("clusters", 49, 50), ("clusters", 999, 197)],
)
def test_counts_of_a_square_grid_are_squares(key, value, after):
    assert Expedit.tokens_after(197, 1, key, value) == after


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_model_runs_its_middle_on_clusters_and_ends_on_all_tokens(tiny_vit):
    vit = adapt(tiny_vit(depth=4))
    reduced = reduce(vit, parse_schedule("expedit:keep=0.25,until=3@1"))
    assert reduced.tokens == (5, 5, 5, 17)
    assert reduced.reduced_macs < reduced.dense_macs
    restored = reduce(adapt(tiny_vit(depth=4, global_pool="")), parse_schedule("expedit:clusters=4@2"))
    with torch.no_grad():
        assert torch.isfinite(reduced.module(IMAGES)).all()
        assert restored.module(IMAGES).shape[1] == 17


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("expedit:keep=0.25@1", "say behind which block the grid comes back"),
        ("expedit:keep=0.25,until=3@1,2", "block 2 sees clusters already"),
        ("expedit:keep=0.25,until=2@3", "at block 3 is never rebuilt"),
        ("expedit:keep=0.25,until=3@3", "at block 3 is never rebuilt"),
        ("expedit:clusters=5,until=3@1", "5 clusters make no grid over 4 x 4 patches; clusters=2 or 4 or 6 do"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused_with_what_to_do(tiny_vit, spec, reason):
    with pytest.raises(ScheduleError, match=reason):
        reduce(adapt(tiny_vit(depth=4)), parse_schedule(spec))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("expedit:clusters=2.5", "clusters=2.5 must be a whole number"),
        ("expedit:keep=2", "keep=2 must be above 0"),
        ("expedit:keep=0.5,tau=0", "tau=0 must be a number above 0"),
        ("expedit:keep=0.5,norm=l3", "norm=l3: expedit takes l2 or l1"),
    ],
)
def test_wrong_texts_are_refused(spec, reason):
    with pytest.raises(ScheduleError, match=reason):
        parse_schedule(spec)

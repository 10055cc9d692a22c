"""ATS against a slow reference that samples one grid point after another and keeps a set, as the paper says it."""

import math

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError
from edgevit.reduce import reduce
from edgevit.stages import Tap
from edgevit.tokens.ats import ATS, DEAD
from edgevit.tokens.protocol import Site, Tokens
from edgevit.tokens.schedule import parse_schedule

HEADS, WIDTH, CHANNELS, SCALE = 2, 4, 6, 0.5


def drawn(batch, count, seed=0, spread=1.0):
    """`spread` widens the class token's attention logits: fewer patches are taken."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, HEADS, count, WIDTH, generator=generator) for _ in range(3))
    return Tap(q * spread, k, v, SCALE), torch.randn(batch, count, CHANNELS, generator=generator)


def plan(tap, x, prefix, slots, size=None, lowering="gather", **options):
    options = {"points": "slots", **options}
    return ATS.plan(Site(tap, x, size, prefix, prefix + slots, grid=(1, 40), options=options, lowering=lowering))


def scores_of(tap, image, prefix):
    """S of each token by loops, not normalized."""
    q, k, v = tap.q[image].tolist(), tap.k[image].tolist(), tap.v[image].tolist()
    count = len(k[0])
    scores = [0.0] * count
    for head in range(len(q)):
        bias = [0.0] * count if tap.log_size is None else tap.log_size[image].tolist()
        logits = [
            SCALE * sum(a * b for a, b in zip(q[head][0], k[head][j], strict=True)) + bias[j] for j in range(count)
        ]
        powers = [math.exp(value) for value in logits]
        scores = [old + power / sum(powers) for old, power in zip(scores, powers, strict=True)]
    lengths = [math.sqrt(sum(value * value for head in v for value in head[j])) for j in range(count)]
    return {j: scores[j] * lengths[j] for j in range(prefix, count)}


def sampled(scores, points):
    """Patches (keys of `scores`) that the grid takes: nearest cumulative value, the first of equals, as a set."""
    order = sorted(scores, key=lambda j: scores[j])
    total, running, cumulative = sum(scores.values()), 0.0, []
    for j in order:
        running += scores[j] / total
        cumulative.append(running)
    least, most = cumulative[0], cumulative[-1]
    cumulative = [(c - least) / (most - least) for c in cumulative]
    start = min(c for c in cumulative if c > 0)
    chosen = set()
    for i in range(points):
        y = start + i * (1 - start) / (points - 1)
        distances = [abs(y - c) for c in cumulative]
        chosen.add(order[distances.index(min(distances))])
    return chosen


def live_tokens(sample, image):
    return set(sample.order[image][sample.live[image]].tolist())


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("prefix", "count", "slots"), [(1, 20, 18), (1, 20, 10), (2, 21, 2), (5, 30, 12)])
def test_the_sampled_set_is_the_loop_written_references(prefix, count, slots, spread):
    tap, x = drawn(8, count, seed=count + slots, spread=spread)
    sample = plan(tap, x, prefix, slots)
    for image in range(8):
        want = sampled(scores_of(tap, image, prefix), slots)
        assert live_tokens(sample, image) == want | set(range(prefix))
        assert len(set(sample.order[image].tolist())) == prefix + slots  # slots hold different tokens


def test_fewer_points_are_taken_where_attention_is_narrow():
    live = [plan(*drawn(8, 40, spread=spread), 1, 39).live.sum().item() for spread in (0.1, 1.0, 4.0)]
    assert live[0] > live[1] > live[2]


def test_rows_are_taken_whole_and_dead_slots_lose_their_weight():
    tap, x = drawn(4, 20, spread=3.0)
    sample = plan(tap, x, 1, 15)
    rows, size = sample.apply(x, None)
    for image in range(4):
        for slot, token in enumerate(sample.order[image].tolist()):
            assert torch.equal(rows[image, slot], x[image, token])
        assert sorted(set(size[image].tolist())) == pytest.approx([DEAD, 1.0])
        gone = {j for j in range(20) if sample.dropped()[image, j]}
        assert gone == set(range(20)) - live_tokens(sample, image)
    assert torch.isfinite(size.log()).all()


def test_dead_slots_are_never_sampled_and_do_not_shift_the_sampling():
    tap, x = drawn(4, 20, seed=3, spread=2.0)
    first = plan(tap, x, 1, 15)
    rows, size = first.apply(x, None)
    tap, _ = drawn(4, 16, seed=4)
    tap = tap._replace(log_size=size.log())
    second = plan(tap, rows, 1, 8, size)
    for image in range(4):
        scores = scores_of(tap, image, 1)
        alive = {j: value for j, value in scores.items() if size[image, j] > 0.5}
        assert 2 < len(alive) < 15
        assert live_tokens(second, image) == sampled(alive, 8) | {0}


def test_a_block_computes_for_the_live_what_it_would_without_the_dead(tiny_vit):
    view = adapt(tiny_vit(depth=1)).blocks[0]
    x = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(0))
    size = torch.tensor([[1.0] * 7 + [DEAD] * 5])
    with torch.no_grad():
        tap = view.project(x, Tokens())._replace(log_size=size.log())
        padded = view.finish(x, view.attend(tap, False)[0], tap)[:, :7]
        tap = view.project(x[:, :7], Tokens())
        alone = view.finish(x[:, :7], view.attend(tap, False)[0], tap)
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)  # the same sums, in another kernel's order


def test_every_patch_of_one_live_or_of_equal_scores_gives_numbers():
    tap, x = drawn(2, 12)
    size = torch.full((2, 12), DEAD)
    size[:, :2] = 1
    sample = plan(tap._replace(log_size=size.log()), x, 1, 5, size)
    assert live_tokens(sample, 0) == {0, 1}
    same = tap._replace(q=tap.q * 0, v=torch.ones_like(tap.v))
    assert len(live_tokens(plan(same, x, 1, 5), 0)) == 1 + 5  # evenly spread: no two points meet
    zero = tap._replace(v=tap.v * 0)
    assert plan(zero, x, 1, 5).live[:, 1:].any(dim=1).all()


def test_with_points_of_all_patches_the_best_of_the_taken_fill_the_slots():
    tap, x = drawn(4, 41)
    sample = plan(tap, x, 1, 6, points="patches")
    for image in range(4):
        scores = scores_of(tap, image, 1)
        taken = sampled(scores, 40)
        assert len(taken) > 6
        assert live_tokens(sample, image) == {0, *sorted(taken, key=lambda j: -scores[j])[:6]}


@pytest.mark.parametrize(("prefix", "slots"), [(1, 13), (2, 7)])
def test_gather_and_matmul_lowerings_agree_and_each_image_is_decided_alone(prefix, slots):
    tap, x = drawn(4, 20)
    together = plan(tap, x, prefix, slots)
    assert torch.equal(together.order, plan(tap, x, prefix, slots, lowering="matmul").order)
    for i in range(4):
        one = slice(i, i + 1)
        alone = plan(Tap(tap.q[one], tap.k[one], tap.v[one], SCALE), x[one], prefix, slots)
        assert torch.equal(alone.order, together.order[one])
        assert torch.equal(alone.live, together.live[one])


def test_half_precision_decides_in_float32_and_stays_finite_in_a_model(tiny_vit):
    tap, x = drawn(2, 20)
    half = Tap(tap.q.half(), tap.k.half(), tap.v.half(), SCALE)
    full = Tap(*(part.float() for part in half[:3]), SCALE)
    assert torch.equal(plan(half, x.half(), 1, 9).order, plan(full, x, 1, 9).order)
    model = tiny_vit(depth=3)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    reduced = reduce(adapt(model), parse_schedule("ats:keep=0.6@1,2")).module
    with torch.no_grad():
        exact, out = reduced(images), reduced.half()(images.half())
    assert torch.isfinite(out).all()
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=0.05 * exact.abs().max().item())  # 11 bits, 3 blocks


@pytest.mark.parametrize("pool", ["max", "avgmax"])
def test_a_maximum_over_patches_is_refused(tiny_vit, pool):
    with pytest.raises(ScheduleError, match="takes a maximum over them"):
        reduce(adapt(tiny_vit(global_pool=pool)), parse_schedule("ats:keep=0.7@1"))


def test_a_mean_over_patches_leaves_dead_slots_out(tiny_vit):
    model = tiny_vit(global_pool="avg", depth=1)
    vit = adapt(model)
    reduced = reduce(vit, parse_schedule("ats:keep=0.8@1"))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        out, (sample,) = reduced.module.run(images)
        x = vit.blocks[0]
        dense = vit.stem(images)
        tap = x.project(dense, Tokens())
        dense = x.feed_forward(x.finish(dense, x.attend(tap, False)[0], tap))
        assert not sample.live.all()
        for image in range(2):
            patches = [j for j in sample.order[image][sample.live[image]].tolist() if j > 0]
            want = vit.head(dense[image : image + 1, [0, *patches]], None)
            torch.testing.assert_close(out[image : image + 1], want, rtol=1e-4, atol=1e-5)  # another order of sums


def test_counts_and_default_blocks():
    assert ATS.tokens_after(197, 1, "keep", 0.7) == 139
    assert ATS.tokens_after(197, 1, "r", 500) == 3
    assert ATS.default_blocks(12) == (4, 7, 10)

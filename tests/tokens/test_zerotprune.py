"""Zero-TPrune against a slow reference: one vote, one token at a time, as the paper's text says it."""

import math

import pytest
import torch

from edgevit.errors import ScheduleError
from edgevit.stages import Tap
from edgevit.tokens.protocol import Site
from edgevit.tokens.schedule import parse_schedule
from edgevit.tokens.zerotprune import ZeroTPrune, default_iterations, emphasize, page_rank

HEADS, WIDTH, CHANNELS = 3, 4, 6


def drawn(batch, count, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, HEADS, count, WIDTH, generator=generator) for _ in range(2))
    probabilities = (spread * torch.randn(batch, HEADS, count, count, generator=generator)).softmax(dim=-1)
    x = torch.randn(batch, count, CHANNELS, generator=generator)
    return Tap(q, k, torch.zeros_like(k), 0.5, probabilities=probabilities), x


def plan(tap, x, prefix, keep, block=2, lowering="gather", **options):
    site = Site(tap, x, None, prefix, prefix + keep, block=block, depth=4, options=options, lowering=lowering)
    return ZeroTPrune.plan(site)


def rank(graph, present, prefix, iterations, vhf, class_start):
    """graph: [H][N][N] → importance of the patches that are present, and how many heads pass the filter."""
    count, heads = len(graph[0]), []
    for head in graph:
        s = [0.0] * count
        for i in present:
            s[i] = math.sqrt(count) if i == 0 and prefix and class_start else 1.0
        s = [value / sum(s) for value in s]
        for _ in range(iterations):
            votes = [0.0] * count
            for i in present:
                cast = sum(head[i][j] for j in present)
                for j in present:
                    votes[j] += s[i] * head[i][j] / cast
            s = votes
        heads.append({j: s[j] for j in present if j >= prefix})
    kept = []
    for scores in heads:
        mean = sum(scores.values()) / len(scores)
        variance = sum((value / mean - 1) ** 2 for value in scores.values()) / len(scores)
        kept += [scores] if 0.01 <= variance <= 0.7 else []
    used = kept if vhf and kept else heads
    return {j: math.sqrt(sum(scores[j] ** 2 for scores in used) / len(used)) for j in heads[0]}, len(kept)


def reference(tap, image, prefix, keep, share, iterations, vhf=True, class_start=True):
    graph, keys = tap.probabilities[image].tolist(), tap.k[image].tolist()
    count = len(graph[0])
    patches = count - prefix
    similar = min(round(share * (patches - keep)), patches // 2)
    everyone = list(range(count))
    first, _ = rank(graph, everyone, prefix, 1, vhf, class_start)
    order = sorted(first, key=lambda j: first[j])
    less, more = order[: patches // 2], order[patches // 2 :]

    def key(j):
        mean = [sum(head[j][c] for head in keys) / len(keys) for c in range(WIDTH)]
        return [value / math.hypot(*mean) for value in mean]

    closest = {i: max(sum(a * b for a, b in zip(key(i), key(j), strict=True)) for j in more) for i in less}
    gone = sorted(less, key=lambda i: -closest[i])[:similar]
    present = [j for j in everyone if j not in gone]
    second, passed = rank(graph, present, prefix, iterations, vhf, class_start)
    return sorted(second, key=lambda j: -second[j])[:keep], gone, passed


CASES = [(prefix, count, keep) for prefix in (0, 1, 5) for count in (14, 15) for keep in (1, 4, count - prefix - 1)]


@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize(("prefix", "count", "keep"), CASES)
def test_what_is_kept_equals_the_loop_written_reference(prefix, count, keep, share):
    tap, x = drawn(2, count, seed=count * 100 + prefix * 10 + keep, spread=0.6)
    pruned = plan(tap, x, prefix, keep, iterations="3", share=str(share))
    rows, size = pruned.apply(x, None)
    assert size is None
    for image in range(2):
        want, gone, _ = reference(tap, image, prefix, keep, share, 3)
        assert pruned.order[image].tolist() == [*range(prefix), *want]
        assert torch.equal(rows[image], x[image, [*range(prefix), *want]])
        assert pruned.dropped()[image, gone].all()
        assert pruned.dropped()[image].sum() == count - prefix - keep


def test_the_head_filter_leaves_out_heads_and_falls_back_to_all():
    counts = set()
    for seed, spread in enumerate((0.1, 0.3, 0.5, 1.0, 1.5, 3.0)):
        tap, x = drawn(4, 15, seed, spread)
        pruned = plan(tap, x, 1, 6, iterations="2")
        for image in range(4):
            want, _, passed = reference(tap, image, 1, 6, 0.5, 2)
            assert pruned.order[image, 1:].tolist() == want
            counts.add(passed)
    assert {0, 1, 2, 3} <= counts  # no head, some, and all


def test_options_are_what_they_say():
    tap, x = drawn(4, 15, seed=4, spread=1.2)
    orders = [plan(tap, x, 1, 6, **options).order for options in ({}, {"vhf": "off"}, {"start": "uniform"})]
    for image in range(4):
        assert orders[0][image, 1:].tolist() == reference(tap, image, 1, 6, 0.5, 8)[0]
        assert orders[1][image, 1:].tolist() == reference(tap, image, 1, 6, 0.5, 8, vhf=False)[0]
    one = plan(tap, x, 1, 6, start="uniform", iterations="1").order
    assert [one[i, 1:].tolist() for i in range(4)] == [
        reference(tap, i, 1, 6, 0.5, 1, class_start=False)[0] for i in range(4)
    ]
    assert not torch.equal(one, plan(tap, x, 1, 6, iterations="1").order)
    assert torch.equal(plan(tap, x, 1, 6, block=4).order, plan(tap, x, 1, 6, iterations="1").order)


def test_votes_are_neither_made_nor_lost():
    tap, _ = drawn(2, 15)
    start = torch.full((1, 1, 1, 15), 1 / 15)
    s = page_rank(tap.probabilities, start, 20)
    torch.testing.assert_close(s.sum(dim=-1), torch.ones(2, HEADS), rtol=1e-5, atol=0)  # 20 float32 sums of 15
    torch.testing.assert_close(s, (s.unsqueeze(2) @ tap.probabilities).squeeze(2), rtol=1e-3, atol=0)  # a fixed point


def test_importance_is_the_root_mean_square_over_heads():
    scores = torch.tensor([[[3.0, 1.0], [4.0, 1.0]]])
    assert emphasize(scores, 2, vhf=False)[0, 0].item() == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize(("prefix", "count", "keep"), CASES)
def test_lowerings_agree_and_each_image_is_decided_alone(prefix, count, keep):
    tap, x = drawn(3, count)
    together = plan(tap, x, prefix, keep)
    assert torch.equal(together.order, plan(tap, x, prefix, keep, lowering="matmul").order)
    for i in range(3):
        one = slice(i, i + 1)
        alone = Tap(tap.q[one], tap.k[one], tap.v[one], 0.5, probabilities=tap.probabilities[one])
        assert torch.equal(plan(alone, x[one], prefix, keep).order, together.order[one])


def test_one_hot_attention_of_half_precision_gives_numbers():
    tap, x = drawn(2, 14)
    sharp = torch.zeros(2, HEADS, 14, 14, dtype=torch.float16)
    sharp[..., 13] = 1  # every token votes for one, which may be pruned for its similarity
    order = plan(tap._replace(probabilities=sharp), x, 1, 4, share="1").order
    assert order[:, 0].eq(0).all()
    assert all(len(set(row)) == 5 for row in order.tolist())


def test_it_stands_behind_the_block_and_reads_the_probabilities():
    assert ZeroTPrune.placement == "post"
    assert ZeroTPrune.probabilities
    assert [default_iterations(b, 12) for b in (3, 4, 9, 10)] == [30, 8, 8, 1]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("iterations=0", "from 1 to 100"),
        ("iterations=1.5", "whole number"),
        ("share=1.5", "from 0 to 1"),
        ("share=half", "from 0 to 1"),
        ("share=-1", "from 0 to 1"),
        ("vhf=maybe", "on or off"),
    ],
)
def test_wrong_options_are_refused(option, reason):
    with pytest.raises(ScheduleError, match=reason):
        parse_schedule(f"zerotprune:keep=0.7,{option}")

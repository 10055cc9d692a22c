"""HiPrune: anchors, buffers and registers, collected by loops."""

import pytest

from edgevit.errors import ScheduleError
from edgevit.tokens.hiprune import HiPrune
from edgevit.tokens.schedule import parse_schedule


def reference(made, top, image, k, alpha, middle, deep):
    scores, last = made.received(middle, image), made.received(deep, image)
    count, width = len(scores), made.grid[1]
    anchors = top(scores, min(count, round(alpha * k / 5)))
    buffers = [min(max(a + step, 0), count - 1) for a in anchors for step in (-1, 1, -width, width)]
    chosen = list(anchors)
    for patch in [*sorted(set(buffers), key=lambda j: -last[j]), *top(last, count)]:
        if patch not in chosen and len(chosen) < k:
            chosen.append(patch)
    return made.raster(chosen[:k]), set(anchors) | set(buffers)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("k", "alpha"), [(4, 0.1), (10, 0.5), (10, 1.0), (13, 1.0), (24, 0.4), (3, 1.0), (12, 0.0)])
def test_chosen_patches_equal_the_loop_written_reference(encoder, top, prefix, k, alpha):
    made = encoder(prefix=prefix, grid=(4, 6), seed=k)
    got = made.chosen(f"hiprune:tokens={k},alpha={alpha},object=3,layer=-2")
    for image in range(2):
        assert got[image] == reference(made, top, image, k, alpha, 3, 5)[0]


def test_neighbours_go_before_better_attended_patches(encoder, top):
    made = encoder(grid=(4, 6), seed=1)
    got = made.chosen("hiprune:tokens=10,alpha=1")
    want, near = reference(made, top, 0, 10, 1.0, 2, 6)
    assert got[0] == want
    assert set(made.raster(near)) <= set(got[0])
    assert not near <= set(top(made.received(6, 0), 10))  # the last block alone would choose others


def test_defaults_are_a_tenth_and_three_eighths_of_the_depth():
    assert HiPrune.reads(24, {}) == (9, 24)
    assert HiPrune.reads(1, {}) == (1,)


def test_an_object_block_that_is_not_run_is_refused():
    with pytest.raises(ScheduleError, match="object=24 must be one of the blocks 1 to 23"):
        HiPrune.reads(24, {"object": "24", "layer": "-2"})


@pytest.mark.parametrize("option", ["alpha=1.5", "alpha=x", "alpha=-0.1", "object=0", "object=two"])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ScheduleError, match=option):
        parse_schedule(f"hiprune:tokens=4,{option}")

"""HiRED: budgets of parts and the choice within them, by loops."""

import math

import pytest

from edgevit.errors import ScheduleError
from edgevit.tokens.hired import HiRed
from edgevit.tokens.schedule import parse_schedule


def reference(made, top, picture, k, alpha, layout, deep):
    """→ places in all tokens of the picture laid end to end, and the budgets."""
    down, across = layout
    (height, width), parts = made.grid, 1 + layout[0] * layout[1]
    count = height * width
    images = range(picture * parts, (picture + 1) * parts)
    hits = [0] * (down * across)
    marked = int((1 - alpha) * count + 1e-9)
    for patch in top(made.class_row(1, images[0]), marked):
        hits[patch // width * down // height * across + patch % width * across // width] += 1
    whole = math.floor(alpha * k + 1e-9)
    budgets = [whole, *(h * (k - whole) // max(marked, 1) for h in hits)]
    scores = {(g, j): s for g, image in enumerate(images) for j, s in enumerate(made.class_row(deep, image))}
    chosen = []
    for g, budget in enumerate(budgets):
        chosen += [(g, j) for j in top([scores[g, j] for j in range(count)], min(budget, count))]
    rest = sorted((p for p in scores if p not in chosen), key=lambda p: -scores[p])
    chosen += rest[: k - len(chosen)]
    return sorted(g * made.count + made.prefix + j for g, j in chosen), budgets


CASES = [
    ((2, 2), 10, 0.5),
    ((2, 2), 30, 0.2),
    ((1, 3), 17, 0.5),
    ((2, 2), 25, 0.0),
    ((2, 1), 12, 1.0),
    ((2, 2), 70, 0.5),  # more than the full picture holds: its budget is clamped
    ((2, 2), 75, 0.5),  # all there are
]


@pytest.mark.parametrize("prefix", [1, 5])
@pytest.mark.parametrize(("layout", "k", "alpha"), CASES)
def test_chosen_patches_equal_the_loop_written_reference(encoder, top, prefix, layout, k, alpha):
    parts = 1 + layout[0] * layout[1]
    made = encoder(batch=2 * parts, prefix=prefix, depth=3, seed=k)
    got = made.chosen(f"hired:tokens={k},parts={layout[0]}x{layout[1]},alpha={alpha},layer=-2")
    for picture in range(2):
        assert got[picture] == reference(made, top, picture, k, alpha, layout, 2)[0]


def test_budgets_follow_the_full_picture_and_differ(encoder, top):
    made = encoder(batch=5, depth=2, seed=4)
    _, budgets = reference(made, top, 0, 40, 0.25, (2, 2), 2)
    assert len(set(budgets[1:])) > 1
    places = made.chosen("hired:tokens=40,parts=2x2,alpha=0.25")[0]
    counts = [sum(place // made.count == part for place in places) for part in range(5)]
    assert all(count >= budget for count, budget in zip(counts, budgets, strict=True))
    assert sum(counts) == 40


def test_pictures_do_not_see_each_other(encoder):
    made = encoder(batch=10, depth=2, seed=2)
    spec = "hired:tokens=20,parts=2x2"
    together = made.chosen(spec)
    assert together == made.rows(slice(0, 5)).chosen(spec) + made.rows(slice(5, 10)).chosen(spec)


def test_without_parts_an_image_gets_the_whole_budget(encoder, top):
    made = encoder(seed=5)
    assert made.chosen("hired:tokens=6") == [made.raster(top(made.class_row(6, i), 6)) for i in range(2)]


def test_counts_are_of_a_picture():
    assert HiRed.returned("keep", 0.2, (24, 24), {"parts": "2x2"}) == 576
    with pytest.raises(ScheduleError, match="hired: tokens=76 is more than the 75 patches; give 75 or less"):
        HiRed.returned("tokens", 76, (3, 5), {"parts": "2x2"})


@pytest.mark.parametrize("option", ["parts=4", "parts=0x2", "parts=2x", "alpha=2"])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ScheduleError, match=option):
        parse_schedule(f"hired:tokens=4,{option}")

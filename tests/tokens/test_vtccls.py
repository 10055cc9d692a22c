"""VTC-CLS: class rows of several blocks, summed and sorted by loops."""

import pytest

from edgevit.errors import ScheduleError
from edgevit.tokens.vtccls import VtcCls


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ("", (4, 5)),  # the last block is run, and left out
        (",layer=-2", (4, 5)),
        (",layer=-3", (4,)),
        (",start=2", (2, 3, 4, 5)),
        (",start=5,layer=-2", (5,)),
    ],
)
def test_chosen_patches_equal_the_loop_written_reference(encoder, top, options, blocks):
    made = encoder(prefix=2, seed=3)
    got = made.chosen(f"vtccls:tokens=6{options}")
    for image in range(2):
        rows = [made.class_row(block, image) for block in blocks]
        assert got[image] == made.raster(top([sum(column) for column in zip(*rows, strict=True)], 6))


def test_one_block_is_enough():
    assert VtcCls.reads(1, {}) == (1,)
    assert VtcCls.reads(2, {}) == (1,)


def test_a_start_behind_the_last_block_read_is_refused():
    with pytest.raises(ScheduleError, match="start=6 must be one of the blocks 1 to 5, which the choice may read"):
        VtcCls.reads(6, {"start": "6"})

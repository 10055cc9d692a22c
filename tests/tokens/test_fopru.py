"""FoPru: received attention, ranked patch by patch or row by row, by loops."""

import pytest

from edgevit.errors import ScheduleError
from edgevit.tokens.fopru import FoPru


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("k", [1, 7, 15])
def test_rank_equals_the_loop_written_reference(encoder, top, prefix, k):
    made = encoder(prefix=prefix, seed=prefix)
    got = made.chosen(f"fopru:tokens={k},layer=-2")
    for image in range(2):
        assert got[image] == made.raster(top(made.received(5, image), k))


@pytest.mark.parametrize(("amount", "rows"), [("tokens=5", 1), ("tokens=10", 2), ("keep=0.4", 2), ("keep=1", 3)])
def test_rows_equal_the_loop_written_reference(encoder, top, amount, rows):
    made = encoder(prefix=1, seed=rows)
    got = made.chosen(f"fopru:{amount},strategy=row")
    for image in range(2):
        scores = made.received(6, image)
        kept = top([sum(scores[row * 5 : row * 5 + 5]) for row in range(3)], rows)
        assert got[image] == made.raster(row * 5 + c for row in kept for c in range(5))


@pytest.mark.parametrize("tokens", [4, 20])
def test_rows_that_are_not_whole_or_too_many_are_refused(tokens):
    with pytest.raises(ScheduleError, match=f"whole rows of 5 patches, so tokens={tokens} must be a multiple of 5"):
        FoPru.returned("tokens", tokens, (3, 5), {"strategy": "row"})

"""ToDRE: farthest-first choice, by loops."""

import math

import pytest
import torch

from edgevit.errors import ScheduleError
from edgevit.tokens.todre import ToDre


def reference(made, image, k):
    rows = made.tokens[image, made.prefix :].tolist()
    lengths = [math.sqrt(sum(v * v for v in row)) for row in rows]
    units = [[v / length for v in row] for row, length in zip(rows, lengths, strict=True)]
    cosine = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in units] for u in units]
    chosen = [min(range(len(rows)), key=lambda i: sum(cosine[i]))]
    while len(chosen) < k:
        rest = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(1 - cosine[i][c] for c in chosen)))
    return made.raster(chosen)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("k", [1, 2, 6, 15])
@pytest.mark.parametrize("lowering", ["gather", "matmul"])
def test_chosen_patches_equal_the_loop_written_reference(encoder, prefix, k, lowering):
    made = encoder(prefix=prefix, seed=k)
    got = made.chosen(f"todre:tokens={k}", lowering)
    assert got == [reference(made, image, k) for image in range(2)]


def test_equal_tokens_are_still_chosen_once_each(encoder):
    made = encoder()
    made.tokens[:] = 1.0
    assert all(len(set(places)) == 9 for places in made.chosen("todre:tokens=9"))


def test_tokens_of_length_zero_are_no_trouble(encoder):
    made = encoder()
    made.tokens[:, 4:9] = 0.0
    made.tokens = (made.tokens * 2e4).clamp(-6e4, 6e4)  # near the largest float16
    assert all(len(set(places)) == 6 for places in made.chosen("todre:tokens=6"))
    made.tokens = made.tokens.to(torch.float16)
    assert all(len(set(places)) == 6 for places in made.chosen("todre:tokens=6"))


def test_more_than_64_tokens_are_refused():
    assert ToDre.returned("tokens", 64, (24, 24), {}) == 64
    with pytest.raises(ScheduleError, match="todre: 65 tokens are more than the 64 whose choice can be unrolled"):
        ToDre.returned("tokens", 65, (24, 24), {})
    with pytest.raises(ScheduleError, match="144 tokens are more than"):
        ToDre.returned("keep", 0.25, (24, 24), {})

"""FasterVLM: the class row of the last block run, sorted by loops."""

import pytest

from edgevit.tokens.fastervlm import FasterVLM


@pytest.mark.parametrize("prefix", [1, 5])
@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("k", [1, 4, 15])
def test_chosen_patches_equal_the_loop_written_reference(encoder, top, prefix, layer, k):
    made = encoder(prefix=prefix, seed=k)
    got = made.chosen(f"fastervlm:tokens={k},layer={layer}")
    for image in range(2):
        assert got[image] == made.raster(top(made.class_row(6 + 1 + layer, image), k))


def test_it_needs_a_class_token():
    assert FasterVLM.needs_class_token

"""What all selectors share: counts on whole numbers, refusals, and properties of the choice."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevit.errors import ScheduleError
from edgevit.stages import Stage
from edgevit.tokens import METHODS, method
from edgevit.tokens.counting import count_tokens
from edgevit.tokens.schedule import parse_schedule

SELECTORS = [name for name in METHODS if method(name).selector]
BLOCK = SimpleNamespace(macs_per_token=(100, 200), attention_width=8)
STAGE = Stage((BLOCK,) * 4, 1, (3, 5))
ONE_BLOCK = 16 * 300 + 2 * 8 * 16**2


def counts(spec):
    return count_tokens(parse_schedule(spec), (STAGE,), 7)


def test_all_six_are_in_the_table():
    assert {"fastervlm", "vtccls", "hired", "hiprune", "fopru", "todre"} <= set(SELECTORS)


@pytest.mark.parametrize("name", SELECTORS)
def test_all_blocks_see_all_tokens_and_the_last_returns_the_chosen(name):
    found = counts(f"{name}:tokens=6")
    assert found.before == (16,) * 4
    assert found.after == (16, 16, 16, 6)
    assert found.macs == 7 + 4 * ONE_BLOCK
    assert found.notes == ()


@pytest.mark.parametrize("name", SELECTORS)
def test_blocks_behind_the_layer_read_are_neither_run_nor_counted(name):
    found = counts(f"{name}:keep=0.4,layer=-2")
    assert found.after == (16, 16, 6)
    assert found.macs == 7 + 3 * ONE_BLOCK
    assert found.notes == ("1 of 4 blocks are not run, and neither final norm nor head is applied (layer=)",)


@pytest.mark.parametrize(
    ("amount", "count"), [("keep=0.4", 6), ("keep=0.41", 7), ("keep=1", 15), ("keep=0.01", 1), ("tokens=15", 15)]
)
def test_a_share_is_rounded_up_and_is_one_at_least(amount, count):
    assert counts(f"fastervlm:{amount}").after[-1] == count


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("fastervlm:tokens=16", "tokens=16 is more than the 15 patches; give 15 or less"),
        ("fastervlm:tokens=0", "tokens=0 must be a whole number of tokens, 1 or more"),
        ("fastervlm:tokens=2.5", "tokens=2.5 must be a whole number"),
        ("fastervlm:keep=0", "keep=0 must be above 0"),
        ("fastervlm:tokens=4@2", "takes neither @ nor until=; layer=-2 reads the last block but one"),
        ("fastervlm:tokens=4,until=3", "takes neither @ nor until="),
        ("fastervlm:flops=0.5", "cannot cut their MACs; give tokens= or keep="),
        ("fastervlm:auto,flops=0.5", "give tokens= or keep="),
        ("fastervlm:tokens=4,layer=2", "layer=2 must be a whole number below 0: -1 is the last"),
        ("fastervlm:tokens=4,layer=-5", "the model has 4 blocks, so layer= goes from -1 to -4"),
        ("vtccls:tokens=4,start=4", "start=4 must be one of the blocks 1 to 3"),
        ("hiprune:tokens=4,object=4,layer=-2", "object=4 must be one of the blocks 1 to 3"),
        ("todre:r=4", "todre needs one of tokens=, keep="),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(spec, reason):
    with pytest.raises(ScheduleError) as caught:
        counts(spec)
    assert reason in str(caught.value)


def spec_of(name, k):
    return f"{name}:tokens={k}"


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("prefix", [1, 3])
def test_the_choice_is_k_different_patches_in_raster_order(encoder, name, prefix):
    made = encoder(batch=3, prefix=prefix)
    for places in made.chosen(spec_of(name, 8)):
        assert len(places) == 8
        assert places == sorted(set(places))
        assert prefix <= places[0]
        assert places[-1] < made.count


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("lowering", ["gather", "matmul"])
def test_a_batch_gives_what_its_images_give_alone(encoder, name, lowering):
    made = encoder(batch=3, seed=7)
    together = made.chosen(spec_of(name, 6), lowering)
    assert together == [made.rows(slice(i, i + 1)).chosen(spec_of(name, 6), lowering)[0] for i in range(3)]


@pytest.mark.parametrize("name", [n for n in SELECTORS if n != "hiprune"])  # its buffers are neighbours on the grid
@given(seed=st.integers(0, 10**6), k=st.integers(1, 14))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_the_chosen_set_moves_with_the_patches(encoder, name, seed, k):
    made = encoder(batch=1, seed=seed, depth=2)
    order = torch.randperm(made.count - 1, generator=torch.Generator().manual_seed(seed)) + 1
    order = torch.cat([torch.zeros(1, dtype=torch.int64), order])
    moved = made.rows(slice(None))
    moved.taps = [made.tap(t.q[:, :, order], t.k[:, :, order]) for t in made.taps]
    moved.tokens = made.tokens[:, order]
    assert sorted(int(order[p]) for p in moved.chosen(spec_of(name, k))[0]) == made.chosen(spec_of(name, k))[0]


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("scale", [1.0, 200.0, 0.0])  # squares of 200 overflow float16; zeros have no direction
def test_float16_decides_as_float32(encoder, name, scale):
    made, same = encoder(batch=2, seed=5), encoder(batch=2, seed=5)
    for i, tap in enumerate(made.taps):
        q, k = (t.mul(scale).to(torch.float16) for t in (tap.q, tap.k))
        seen = made.tap(q.float(), k.float()).probabilities.to(torch.float16)
        made.taps[i] = tap._replace(q=q, k=k, v=k, probabilities=seen)
        same.taps[i] = tap._replace(q=q.float(), k=k.float(), v=k.float(), probabilities=seen.float())
    made.tokens = made.tokens.mul(scale).to(torch.float16)
    same.tokens = made.tokens.float()
    places = made.chosen(spec_of(name, 6))
    assert places == same.chosen(spec_of(name, 6))
    assert all(len(set(image)) == 6 for image in places)

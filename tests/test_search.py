"""Searched schedules: within the budget, never behind a hand-written one, the same twice, refused when impossible."""

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError
from edgevit.reduce import reduce
from edgevit.search import divergence, search
from edgevit.tokens.counting import count_tokens
from edgevit.tokens.schedule import parse_schedule

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def vit(tiny_vit):
    return adapt(tiny_vit(depth=4))


@pytest.fixture(scope="module")
def batches():
    return list((torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1).split(4))


@pytest.mark.parametrize("spec", ["tome:auto,flops=0.8", "evit:auto,flops=0.8", "tome:auto,flops=0.8,points=2,seed=3"])
def test_the_schedule_keeps_its_budget_and_its_limit_of_points(vit, batches, spec):
    found = search(vit, parse_schedule(spec), batches)
    reduced = reduce(vit, found.schedule)
    assert reduced.reduced_macs <= 0.8 * reduced.dense_macs
    assert not found.schedule.is_auto
    assert parse_schedule(str(found.schedule)) == found.schedule
    if "points" in spec:
        assert len(found.schedule.blocks) <= 2


def test_no_trial_of_the_last_round_is_better_and_hand_written_ones_took_part(vit, batches):
    found = search(vit, parse_schedule("tome:auto,flops=0.8"), batches)
    assert found.trials[0].schedule == found.schedule
    assert [t.loss for t in found.trials] == sorted(t.loss for t in found.trials)
    assert all(t.images == 12 for t in found.trials)
    uniform = reduce(vit, parse_schedule("tome:flops=0.8")).schedule
    by_hand = [t for t in found.trials if len(t.schedule.blocks) == 4 and len(set(t.schedule.amounts)) == 1]
    assert any(t.schedule.amounts[0] == uniform.amounts[0] for t in by_hand)
    with torch.no_grad():
        module = reduce(vit, found.schedule).module
        loss = torch.cat([divergence(module(b), vit.module(b)) for b in batches]).mean()
    assert found.trials[0].loss == pytest.approx(float(loss), rel=1e-4)  # the same sums in another order


def test_the_same_seed_finds_the_same_schedule(vit, batches):
    asked = parse_schedule("tome:auto,flops=0.85,seed=1")
    assert search(vit, asked, batches) == search(vit, asked, batches)


def test_divergence_is_zero_for_equal_outputs_and_grows_with_the_difference():
    want = torch.tensor([[2.0, 0.0, -1.0]])
    near, far = want + torch.tensor([[0.1, 0.0, 0.0]]), want.flip(1)
    assert divergence(want, want).item() == 0
    assert 0 < divergence(near, want).item() < divergence(far, want).item()
    tokens = torch.ones(2, 3, 4)
    assert divergence(tokens * 1.1, tokens).tolist() == pytest.approx([0.01, 0.01], rel=1e-4)  # (0.1)² of the square


def test_a_budget_out_of_reach_names_the_least(vit, batches):
    with pytest.raises(ScheduleError, match="the most this schedule can cut is flops="):
        search(vit, parse_schedule("tome:auto,flops=0.05"), batches)


def test_without_images_it_says_what_is_missing(vit):
    asked = parse_schedule("tome:auto,flops=0.8")
    with pytest.raises(ScheduleError, match="needs calibration images, and there is none"):
        search(vit, asked, [])
    with pytest.raises(ScheduleError, match="searched on calibration images: edgevit export"):
        count_tokens(asked, vit.stages, 0)


def test_export_searches_on_calibration_images_and_writes_the_exact_schedule(cli, refused, module_file, pictures):
    flags = ("--trust-pickle", "--target", "fake", "--reduce", "tome:auto,flops=0.9", "-o", "out")
    assert "pass --calib DATA" in refused("export", module_file, *flags)
    result = cli("export", module_file, *flags, "--calib", pictures.csv, "--json")
    assert result.code == 0, result.err
    assert result.json["schedule"].startswith("tome:r=")
    assert result.json["macs"]["reduced"] <= 0.9 * result.json["macs"]["dense"]

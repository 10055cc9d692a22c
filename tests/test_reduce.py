"""VitModel → ReducedModel: what is wrapped, what stays as it was, what is refused."""

import copy

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError
from edgevit.reduce import dense_macs, reduce
from edgevit.tokens.schedule import TokenSchedule, parse_schedule

timm = pytest.importorskip("timm")
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def build(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}
    model = VisionTransformer(**{**sizes, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model.eval()


@pytest.mark.parametrize("spec", ["none", "tome:r=3", "tome:r=3,prop=off", "evit:keep=0.5"])
def test_undo_gives_back_the_very_same_module_with_the_same_bits(spec):
    model = build()
    state = copy.deepcopy(model.state_dict())
    children = [(name, id(module)) for name, module in model.named_modules()]
    with torch.no_grad():
        before = model(IMAGES)
        reduced = reduce(adapt(model), parse_schedule(spec))
        reduced.module(IMAGES)
        assert reduced.undo() is model
        assert torch.equal(model(IMAGES), before)
    assert [(name, id(module)) for name, module in model.named_modules()] == children
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert not model.training


@pytest.mark.parametrize("spec", ["none", "tome:r=0", "evit:keep=1", "tome:flops=1", "evit:keep=0.97"])
def test_a_schedule_that_removes_nothing_returns_the_original_module(spec):
    model = build()
    reduced = reduce(adapt(model), parse_schedule(spec))
    assert reduced.module is model
    assert reduced.tokens == (17, 17, 17)
    assert reduced.reduced_macs == reduced.dense_macs == dense_macs(model, (1, 3, 32, 32))


@pytest.mark.parametrize("spec", ["tome:r=3", "tome:r=5/2@1,3", "evit:keep=0.5"])
def test_counted_macs_are_what_the_smaller_program_multiplies(spec):
    reduced = reduce(adapt(build()), parse_schedule(spec))
    measured = dense_macs(reduced.module, (1, 3, 32, 32))
    # the reduction's own products (similarity, one-hot) are left out of the count by convention; they are small
    assert reduced.reduced_macs <= measured < 1.05 * reduced.reduced_macs
    assert reduced.reduced_macs < reduced.dense_macs


@pytest.mark.parametrize("spec", ["tome:r=3", "tome:r=3,prop=off", "evit:keep=0.5"])
def test_both_lowerings_compute_the_same(spec):
    parts = adapt(build())
    with torch.no_grad():
        gather = reduce(parts, parse_schedule(spec), "gather").module(IMAGES)
        matmul = reduce(parts, parse_schedule(spec), "matmul").module(IMAGES)
    assert (gather - matmul).abs().max() < 1e-5 * gather.abs().max()  # a product with one 1 in each row is exact


@pytest.mark.parametrize("spec", ["tome:r=3", "evit:keep=0.5"])
def test_an_image_does_not_depend_on_the_others_in_its_batch(spec):
    reduced = reduce(adapt(build()), parse_schedule(spec)).module
    with torch.no_grad():
        together = reduced(IMAGES)
        alone = torch.cat([reduced(IMAGES[i : i + 1]) for i in range(2)])
    assert (together - alone).abs().max() < 1e-5 * alone.abs().max()  # kernels may block other batch sizes differently


def test_proportional_attention_is_on_unless_switched_off():
    parts = adapt(build())
    with torch.no_grad():
        on, said_on, off = (
            reduce(parts, parse_schedule(f"tome:r=5{option}")).module(IMAGES)
            for option in ("", ",prop=on", ",prop=off")
        )
    assert torch.equal(on, said_on)
    assert (on - off).abs().max() > 1e-3 * on.abs().max()


def test_a_solved_budget_is_kept_and_the_schedule_is_exact():
    reduced = reduce(adapt(build()), parse_schedule("tome:flops=0.8"))
    assert reduced.schedule.key == "r"
    assert reduced.reduced_macs <= 0.8 * reduced.dense_macs
    r = reduced.schedule.amounts[0]
    less = reduce(adapt(build()), TokenSchedule("tome", "r", (r - 1,)))
    assert less.reduced_macs > 0.8 * less.dense_macs


def test_a_capped_schedule_is_noted_and_runs():
    reduced = reduce(adapt(build()), parse_schedule("tome:r=7"))
    assert reduced.tokens == (10, 6, 4)
    assert reduced.notes == (
        "block 2: r=7 is more than can go of its 9 patches; 4 do",
        "block 3: r=7 is more than can go of its 5 patches; 2 do",
    )
    with torch.no_grad():
        assert torch.isfinite(reduced.module(IMAGES)).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"class_token": False, "global_pool": "avg"}, "this model has no class token"),
        ({"global_pool": "avg"}, r"pools over patches \(avg\), which would count it as one; use tome"),
        ({"global_pool": "map"}, r"pools over patches \(map\)"),
    ],
)
def test_evit_is_refused_where_its_fused_token_would_be_pooled(options, reason):
    with pytest.raises(ScheduleError, match=reason):
        reduce(adapt(build(**options)), parse_schedule("evit:keep=0.7"))


def test_a_block_the_model_does_not_have_is_refused():
    with pytest.raises(ScheduleError, match="the model has 3 blocks, so there is no block 4"):
        reduce(adapt(build()), parse_schedule("tome:r=2@4"))

"""Schedules of the trained methods: they give what the trained modules give, count, and are refused elsewhere."""

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError
from edgevit.reduce import dense_macs, reduce
from edgevit.stages import Stage
from edgevit.tokens.counting import count_tokens
from edgevit.tokens.schedule import parse_schedule
from edgevit.trained import TRAINED

SAME = {"rtol": 1e-5, "atol": 1e-6}  # the same kernels; attention in parts may add in another order

# schedule → settings of the trained module whose own forward must give the same
EQUAL = {
    "dynamicvit:keep=0.7": {"keep": 0.7},
    "dynamicvit:keep=0.5@1,2,3": {"keep": 0.5},
    "dynamicvit:keep=1": {"keep": 1.0},
    "dtem:r=3": {"r": 3},
    "dtem:r=5,prop=off@1,3": {"r": 5, "blocks": (1, 3), "proportional": False},
    "sit:keep=0.5": {},
    "stvit:semantic=2": {},
    "lookupvit:compressed=3": {"compressed": (3, 3)},
    "lookupvit:compressed=1/4": {"compressed": (1, 4)},
    "dtop:budgets=12/7": {"budgets": (12, 7)},
    "dtop:budgets=9": {"budgets": (9, 9)},
    "dtop:keep=0.7,threshold=0.07,context=1": {"budgets": (12, 9), "threshold": 0.07, "context": 1},
}


@pytest.mark.parametrize("lowering", ["gather", "matmul"])
@pytest.mark.parametrize("spec", EQUAL)
def test_a_schedule_gives_what_the_trained_module_gives(tiny, images, spec, lowering):
    architecture = spec.split(":")[0]
    module = tiny(architecture)
    reduced = reduce(adapt(module), parse_schedule(spec), lowering)
    want = tiny(architecture, **EQUAL[spec])
    want.load_state_dict(module.state_dict())
    x = images(architecture, 3)
    with torch.no_grad():
        torch.testing.assert_close(reduced.module(x), want(x), **SAME)
    assert all(type(count) is int for count in reduced.tokens)
    assert reduced.tokens == getattr(want, "after", want.tokens)
    assert str(parse_schedule(str(reduced.schedule))) == spec
    assert reduced.undo() in (module, module.backbone)


@pytest.mark.parametrize("spec", ["sit:keep=0.5", "stvit:semantic=2", "lookupvit:compressed=3", "dtop:budgets=12/7"])
def test_an_architectures_schedule_shares_the_weights_and_counts_what_it_costs(tiny, spec):
    module = tiny(spec.split(":")[0])
    before = {key: value.clone() for key, value in module.state_dict().items()}
    reduced = reduce(adapt(module), parse_schedule(spec))
    assert {id(p) for p in reduced.module.parameters()} == {id(p) for p in module.parameters()}
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    shape = (1, 3, *adapt(module).image_size)
    assert reduced.dense_macs == dense_macs(module, shape)
    assert reduced.reduced_macs == dense_macs(reduced.module, shape)


@pytest.mark.parametrize("spec", ["dynamicvit:keep=0.6", "dtem:r=4"])
def test_counted_macs_are_what_the_smaller_program_multiplies(tiny, spec):
    reduced = reduce(adapt(tiny(spec.split(":")[0])), parse_schedule(spec))
    measured = dense_macs(reduced.module, (1, 3, 32, 32))
    # the reduction's own products (predictors, embeddings) are left out of the count; beside 32 channels they are large
    assert reduced.reduced_macs <= measured < 1.35 * reduced.reduced_macs
    assert reduced.reduced_macs < reduced.dense_macs


class Block:
    macs_per_token, attention_width = (4, 8), 1


@pytest.mark.parametrize(
    ("spec", "after"),
    [
        ("dynamicvit:keep=0.7", (197, 197, 197, 138, 138, 138, 97, 97, 97, 68, 68, 68)),
        ("dynamicvit:keep=0.9/0.5@2,12", (197, *[177] * 10, 89)),  # int(196 · .9), int(196 · .45)
        ("dynamicvit:keep=0.001@1,2", (2,) * 12),
    ],
)
def test_dynamicvit_counts_from_the_patches_of_the_image(spec, after):
    counts = count_tokens(parse_schedule(spec), (Stage((Block,) * 12, 1, (14, 14)),), 0)
    assert counts.after == after
    # a block whose tokens were pruned in front of it costs only what is left
    assert counts.macs == sum(12 * n + 2 * n * n for n in after)


def test_fewer_points_use_the_first_predictors(tiny, images):
    module = tiny("dynamicvit")
    state = {k: v for k, v in module.state_dict().items() if not k.startswith("predictors.2")}
    want = tiny("dynamicvit", blocks=(2, 3), keep=0.6)
    want.load_state_dict(state)
    reduced = reduce(adapt(module), parse_schedule("dynamicvit:keep=0.6@2,3"))
    x = images("dynamicvit", 2)
    with torch.no_grad():
        torch.testing.assert_close(reduced.module(x), want(x), **SAME)


def test_without_a_schedule_steps_run_dense_and_say_so_and_architectures_run_as_loaded(tiny):
    for architecture in TRAINED:
        module = tiny(architecture)
        reduced = reduce(adapt(module), parse_schedule("none"))
        step = architecture in ("dynamicvit", "dtem")
        assert reduced.module is (module.backbone if step else module)
        assert reduced.tokens == ((17, 17, 17) if step else module.tokens)
        assert reduced.reduced_macs == reduced.dense_macs
        unused = f"the {architecture} weights of this checkpoint are not used; --reduce {architecture}:... uses them"
        assert reduced.notes == ((unused,) if step else ())


def test_other_methods_reduce_the_plain_backbone_of_dynamicvit_and_dtem(tiny, images):
    for architecture in ("dynamicvit", "dtem"):
        module = tiny(architecture)
        x, schedule = images(architecture, 2), parse_schedule("tome:r=3")
        with torch.no_grad():
            got = reduce(adapt(module), schedule).module(x)
            torch.testing.assert_close(got, reduce(adapt(module.backbone), schedule).module(x), **SAME)


REFUSED = {
    ("dynamicvit", "dynamicvit:keep=0.7,until=3@1"): "dynamicvit drops tokens for good",
    ("dynamicvit", "dtem:r=3"): "dtem needs its trained weights: load its checkpoint with --arch dtem:NAME",
    ("dtem", "dynamicvit:keep=0.7"): "dynamicvit needs its trained weights",
    ("dtem", "sit:keep=0.5"): "sit needs its trained weights: load its checkpoint with --arch sit:NAME",
    ("sit", "dtop:keep=0.5"): "dtop needs its trained weights",
    (
        "sit",
        "tome:r=3",
    ): "tome reduces between blocks, and sit on timm VisionTransformer runs as it was trained; its own "
    "settings are --reduce sit:",
    ("dtop", "hiprune:keep=0.5"): "hiprune reduces between blocks, and dtop on",
    ("sit", "sit:keep=0.7"): "leaves 11, 7 patches, and this checkpoint was trained to leave 8, 4",
    ("sit", "sit:keep=0.5@1,2"): "sit reduces where it was trained to; drop @ and until=",
    ("sit", "sit:keep=0.5,until=2"): "drop @ and until=",
    ("sit", "sit:flops=0.5"): "sit is built from its settings, not for a budget; give keep=",
    ("stvit", "stvit:semantic=3"): "this checkpoint was trained with semantic=2",
    ("lookupvit", "lookupvit:compressed=5"): r"compressed=\(5, 5\) must be a grid of at most \(4, 4\)",
    ("dtop", "dtop:budgets=7/12"): r"budgets=\[7, 12\] must be one per stage \[2, 3\]|none above the one before",
    ("dtop", "dtop:keep=0.9/0.8/0.7"): "must be one per stage",
    ("dtop", "dtop:flops=0.9"): "give keep= or budgets=",
}


@pytest.mark.parametrize(("architecture", "spec"), REFUSED)
def test_a_schedule_that_does_not_fit_the_checkpoint_is_refused(tiny, architecture, spec):
    vit = adapt(tiny(architecture))
    with pytest.raises(ScheduleError, match=REFUSED[architecture, spec]):
        reduce(vit, parse_schedule(spec))


def test_more_points_than_predictors_are_refused(tiny):
    vit = adapt(tiny("dynamicvit", blocks=(2, 3)))
    with pytest.raises(ScheduleError, match="this checkpoint has 2 predictors, and the schedule 3 points"):
        reduce(vit, parse_schedule("dynamicvit:keep=0.7"))
    assert reduce(vit, parse_schedule("dynamicvit:keep=0.7@1,3")).tokens == (12, 12, 8)


@pytest.mark.parametrize("name", TRAINED)
def test_a_plain_vit_has_no_trained_weights(tiny_vit, name):
    spec = {"stvit": "stvit:semantic=3", "lookupvit": "lookupvit:compressed=2"}.get(name, f"{name}:keep=0.5")
    with pytest.raises(
        ScheduleError, match=f"{name} needs its trained weights: load its checkpoint with --arch {name}:"
    ):
        reduce(adapt(tiny_vit()), parse_schedule(spec))


WRONG_SPEC = {
    "dynamicvit:auto,flops=0.7": "dynamicvit:auto has predictors that were trained for their places",
    "sit:auto,flops=0.7": "sit:auto reduces as its checkpoint was trained to",
    "dynamicvit:r=8": "dynamicvit has no key 'r'|dynamicvit needs one of keep=",
    "dynamicvit:keep=0.7,scope=attention": "cannot stand inside the attention",
    "sit:keep=0.5,scope=attention": "cannot stand inside the attention",
    "sit:keep=0.5/0.4": "keep= takes one number",
    "stvit:semantic=2.5": "semantic=2.5 must be a whole number",
    "stvit:semantic=2/2": "semantic= takes one number",
    "lookupvit:compressed=0": "compressed=0 must be a whole number, 1 or more",
    "lookupvit:compressed=2/2/2": "compressed= takes one side, or rows/columns",
    "dtop:budgets=1.5": "budgets=1.5 must be a whole number, 1 or more",
    "dtop:keep=2": "keep=2 must be above 0 and at most 1",
    "dtop:keep=0.5,threshold=2": "threshold=2 must be a number from 0 to 1",
    "dtop:keep=0.5,context=0": "context=0 must be a whole number from 1",
}


@pytest.mark.parametrize("spec", WRONG_SPEC)
def test_a_wrong_spec_is_refused_with_what_to_do(spec):
    with pytest.raises(ScheduleError, match=WRONG_SPEC[spec]):
        parse_schedule(spec)


def test_a_budget_is_solved_for_dynamicvit_and_dtem(tiny):
    for architecture, key in (("dynamicvit", "keep"), ("dtem", "r")):
        reduced = reduce(adapt(tiny(architecture)), parse_schedule(f"{architecture}:flops=0.8"))
        assert reduced.schedule.key == key
        assert reduced.reduced_macs <= 0.8 * reduced.dense_macs
        assert reduced.tokens[-1] < 17

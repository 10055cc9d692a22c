"""Families with windows, stages or maps: what must hold for each of them."""

import types

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError, UnsupportedModel
from edgevit.export.to_onnx import to_onnx
from edgevit.export.trace import trace
from edgevit.flops import flop_counter
from edgevit.reduce import dense_macs, reduce
from edgevit.reduced_vit import dense_parts
from edgevit.stages import InputSpec
from edgevit.tokens.counting import count_tokens
from edgevit.tokens.macs import block_macs
from edgevit.tokens.protocol import Tokens
from edgevit.tokens.schedule import TokenSchedule, parse_schedule

pytest.importorskip("timm")
from tests.adapters.families_staged import (
    FAMILIES,
    efficientformer,
    hiera,
    levit,
    mobilevit,
    pictures,
    pit,
    rowwise,
    striped,
    swin,
    swin_v2,
)

BLOCKS = {  # a block of each family whose tokens are reduced, and its attention
    "Swin": ("layers.0.blocks.1", "attn"),
    "Swin V2": ("layers.1.blocks.0", "attn"),
    "Hiera": ("blocks.3", "attn"),
    "PiT": ("transformers.1.blocks.0", "attn"),
    "LeViT": ("stages.0.blocks.1", "attn"),
    "EfficientFormer": ("stages.1.blocks.3", "token_mixer"),
    "MobileViT": ("stages.1.1.transformer.0", "attn"),
}


@pytest.fixture(scope="module")
def model_of():
    """One model and its parts per family, built once; tests that change a model build their own."""
    built = {}

    def get(family):
        if family not in built:
            model = FAMILIES[family]()
            built[family] = model, adapt(model)
        return built[family]

    return get


def relative(got, want):
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_equal_the_whole(model_of, family):
    model, parts = model_of(family)
    images = pictures(3, parts.image_size)
    with torch.no_grad():
        want, got = model(images), dense_parts(parts)(images)
    assert relative(got, want) < 1e-5  # float32 sums in another order
    assert relative(want.flip(0), want) > 0.01  # the model reads its input, so equality means something


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_part_of_the_reduced_module(model_of, family):
    model, parts = model_of(family)
    assert {id(p) for p in model.parameters()} == {id(p) for p in dense_parts(parts).parameters()}


@pytest.mark.parametrize("spec", ["tome:r=2", "tome:keep=0.7"])
@pytest.mark.parametrize("family", FAMILIES)
def test_merging_runs_with_the_right_counts(model_of, family, spec):
    model, parts = model_of(family)
    reduced = reduce(parts, parse_schedule(spec))
    want, images = [], pictures(2, parts.image_size)
    for stage in parts.stages:
        patches = stage.grid[0] * stage.grid[1]  # each stage begins with all of its tokens
        for _ in stage.blocks:
            gone = 2 if spec == "tome:r=2" else patches - -(-patches * 7 // 10)
            patches -= min(gone, patches // 2)
            want.append(stage.prefix + patches)
    assert reduced.tokens == tuple(want)
    with torch.no_grad():
        dense, (got, plans) = model(images), reduced.module.run(images)
    home = [stage for stage in parts.stages for _ in stage.blocks]
    for plan, stage, count in zip(plans, home, want, strict=True):
        if plan is not None:
            assert plan.slots().shape[0] == 2 * stage.groups
            assert (plan.slots().amax(dim=1) + 1).eq(count).all()
    assert got.shape == dense.shape
    assert torch.isfinite(got).all()
    assert 1e-5 < relative(got, dense) < 1  # it did reduce, and the model is still itself


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_does_not_depend_on_the_others_in_its_batch_nor_on_the_lowering(model_of, family):
    parts = model_of(family)[1]
    images = pictures(3, parts.image_size)
    schedule = parse_schedule("tome:r=2@1")
    gather, matmul = (reduce(parts, schedule, lowering).module for lowering in ("gather", "matmul"))
    with torch.no_grad():
        together = gather(images)
        alone = torch.cat([gather(images[i : i + 1]) for i in range(3)])
        assert relative(alone, together) < 1e-5  # kernels may block other batch sizes differently
        assert relative(matmul(images), together) < 1e-5  # a product with one 1 in each row is exact


def firsts(parts):
    """The number of the first block of each stage."""
    return [1 + sum(len(stage.blocks) for stage in parts.stages[:i]) for i in range(len(parts.stages))]


@pytest.mark.parametrize("amount", ["r=2", "r=1", "keep=0.5"])
@pytest.mark.parametrize("family", FAMILIES)
def test_merging_identical_tokens_changes_nothing(family, amount):
    model = rowwise(FAMILIES[family]())
    parts = adapt(model)
    where = ",".join(map(str, firsts(parts)))
    images = striped(2, parts.image_size)  # tokens are the same along each row, so each has a twin beside it
    with torch.no_grad():
        want = model(images)
        got, plans = reduce(parts, parse_schedule(f"tome:{amount}@{where}")).module.run(images)
        assert sum(plan is not None for plan in plans) == len(parts.stages)
        assert relative(got, want) < 1e-5  # what comes back, attention and pooling count each token as often as before
        plain = reduce(parts, parse_schedule(f"tome:{amount},prop=off@{where}")).module
        # where blocks follow in a stage, other sizes are another function: the equality above is earned
        uneven = amount == "r=2" and any(len(stage.blocks) > 1 for stage in parts.stages)
        assert not uneven or relative(plain(images), want) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_is_refused(model_of, family):
    with pytest.raises(ScheduleError, match=r"this model has no class token|drops tokens for good"):
        reduce(model_of(family)[1], parse_schedule("evit:keep=0.7"))


def entering(parts):
    """What each block is given for one image."""
    module, seen = dense_parts(parts), []
    for block in module.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        module(pictures(1, parts.image_size))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_counted_macs_are_what_is_multiplied(model_of, family):
    model, parts = model_of(family)
    shape = (1, 3, *parts.image_size)
    dense = dense_macs(model, shape)
    assert dense_macs(dense_parts(parts), shape) == dense
    assert dense > count_tokens(TokenSchedule.none(), parts.stages, 0).macs  # a stem and a head remain
    for view, x in zip(parts.blocks, entering(parts), strict=True):
        count = x.shape[1]
        with torch.enable_grad(), flop_counter() as counter:
            tap = view.project(x, Tokens())
            view.feed_forward(view.finish(x, view.attend(tap, False)[0], tap)[:, : count // 2])
        network = 0  # version 2 of Swin computes its bias from coordinates, once
        if family == "Swin V2":
            network = sum(m.weight.numel() for m in view.block.attn.cpb_mlp if isinstance(m, nn.Linear)) * 7 * 7
        assert counter.get_total_flops() // 2 == len(x) * block_macs(view, count, count // 2) + network


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_keys_and_values_alone_are_those_of_the_projection(model_of, family):
    parts = model_of(family)[1]
    for view, x in zip(parts.blocks, entering(parts), strict=True):
        with torch.no_grad():
            whole, alone, values = view.project(x, Tokens()), view.query_keys(x, Tokens()), view.values(x)
        for got, want in ((alone.q, whole.q), (alone.k, whole.k), (values, whole.v)):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)  # batch norm as scale and shift
        assert alone.scale == whole.scale
        assert (alone.bias is None) == (whole.bias is None)
        assert whole.bias is None or torch.equal(alone.bias, whole.bias)


SMALLEST = {  # as few operators as show what is special: a shift, a pooling block, a map between two stages
    "Swin": lambda: swin(depths=(2,), num_heads=(2,)),
    "Swin V2": lambda: swin_v2(depths=(2,), num_heads=(2,)),
    "Hiera": lambda: hiera(stages=(1, 2), q_pool=1, mask_unit_size=(2, 2), mask_unit_attn=(True, False)),
    "PiT": lambda: pit(depth=(1, 1), base_dims=(8, 8), heads=(2, 4)),
    "LeViT": lambda: levit("Levit", embed_dim=(16, 24), num_heads=(2, 3), depth=(1, 1)),
    "EfficientFormer": lambda: efficientformer(depths=(1, 2), num_vit=2),
    "MobileViT": lambda: mobilevit(depth=1),
}


def reduced_smallest(family, batch):
    """Module, trace (the gate refuses what is not static) and images of a model with one reducing block.

    With many blocks, some of so many windows find two tokens that are equally near, and kernels decide.
    """
    parts = adapt(SMALLEST[family]())
    module = reduce(parts, parse_schedule(f"tome:r=2@{1 if family in ('Hiera', 'PiT') else 2}")).module
    images = pictures(batch, parts.image_size, seed=5)
    return module, trace(module, InputSpec(batch, *parts.image_size)), images


@pytest.mark.parametrize("family", SMALLEST)
def test_the_traced_program_is_static_and_computes_the_same(family):
    module, graph, images = reduced_smallest(family, batch=2)
    with torch.no_grad():
        assert relative(graph.program.module()(images), module(images)) < 1e-5  # the same operators


@pytest.mark.slow  # two seconds each; the next test stands for all in the quick run
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("family", SMALLEST)
def test_onnxruntime_gives_the_same_numbers(tmp_path, family, batch):
    onnx_agrees(tmp_path, family, batch)


def test_onnxruntime_gives_the_same_numbers_for_shifted_windows(tmp_path):
    onnx_agrees(tmp_path, "Swin", batch=2)


def onnx_agrees(folder, family, batch):
    runtime = pytest.importorskip("onnxruntime")
    module, graph, images = reduced_smallest(family, batch)
    to_onnx(graph, folder / "model.onnx")
    session = runtime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.no_grad():
        assert relative(got, module(images)) < 1e-4  # float32 sums in another order


def refusal(model):
    with pytest.raises(UnsupportedModel) as refused:
        adapt(model)
    return str(refused.value)


@pytest.mark.parametrize("family", BLOCKS)
def test_a_patched_forward_is_refused_by_name(family):
    where, attention = BLOCKS[family]
    for path in (where, f"{where}.{attention}"):
        model = FAMILIES[family]()
        part = model.get_submodule(path)
        part.forward = types.MethodType(lambda self, x, **more: x, part)
        text = refusal(model)
        assert where in text
        assert f"{type(part).__name__} with a patched forward" in text


@pytest.mark.parametrize("family", BLOCKS)
def test_a_subclass_of_the_block_is_refused_by_name(family):
    model = FAMILIES[family]()
    block = model.get_submodule(BLOCKS[family][0])
    block.__class__ = type("Mine", (type(block),), {})
    assert f"{BLOCKS[family][0]} is Mine" in refusal(model)


@pytest.mark.parametrize("family", BLOCKS)
def test_an_unknown_child_is_refused_by_name(family):
    where, attention = BLOCKS[family]
    for path in ("", where, f"{where}.{attention}"):
        model = FAMILIES[family]()
        model.get_submodule(path).extra = nn.Identity()
        text = refusal(model)
        assert "has extra, which this adapter does not run" in text
        assert where in text or not path


@pytest.mark.parametrize("family", BLOCKS)
def test_a_patched_method_of_the_model_and_training_mode_are_refused(family):
    model = FAMILIES[family]()
    assert "is in training mode; call .eval() first" in refusal(model.train())
    model.eval()
    model.forward_head = model.forward_head
    assert f"{type(model).__name__}.forward_head is not the library's own" in refusal(model)


def test_inspect_lists_the_stages_and_says_why_it_draws_no_picture(cli, tmp_path, pictures):
    torch.save(swin(depths=(2,), num_heads=(2,)), tmp_path / "swin.pt")
    arguments = ("inspect", tmp_path / "swin.pt", "--trust-pickle", "--reduce", "tome:r=2@2")
    found = cli(*arguments, "--json").json
    assert found["tokens"] == [16, 14]
    assert found["stages"][1] == {"blocks": 1, "grid": [4, 4], "groups": 16, "restores": True}
    result = cli(*arguments, "--image", pictures.files[0])
    assert result.code == 1
    assert "this model reduces windows or stages whose tokens come back" in result.message

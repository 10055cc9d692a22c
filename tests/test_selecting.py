"""Selectors on a model that returns tokens: what runs, what it costs, what is refused, and the exported program."""

import numpy as np
import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import EdgeVitError, ScheduleError
from edgevit.export.trace import trace
from edgevit.reduce import dense_macs, reduce
from edgevit.selecting import SelectingVit
from edgevit.stages import InputSpec
from edgevit.tokens import METHODS, method
from edgevit.tokens.protocol import Tokens
from edgevit.tokens.schedule import parse_schedule

pytest.importorskip("timm")

SELECTORS = [name for name in METHODS if method(name).selector]
ROUNDING = 1e-5  # relative to the largest output: the same sums in other shapes
SPECS = [
    *(f"{name}:tokens=8{layer}" for name in SELECTORS for layer in ("", ",layer=-2")),
    "fopru:keep=0.5,strategy=row",
    "hiprune:tokens=12,alpha=1",
    "hired:tokens=20,parts=2x2",
    "hired:tokens=20,parts=2x2,layer=-2",
]


def images(count, seed=1):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def encoder(tiny_vit):
    """A model of three blocks that returns its tokens, and its parts."""
    model = tiny_vit(depth=3, global_pool="", num_classes=0, reg_tokens=1)
    return model, adapt(model)


def relative(got, want):
    return float((got - want).abs().max() / want.abs().max())


def batch_of(spec):
    return 5 if "parts" in spec else 1


@pytest.mark.parametrize("spec", SPECS)
def test_the_output_is_the_chosen_rows_of_the_models_tokens(encoder, spec):
    model, vit = encoder
    reduced = reduce(vit, parse_schedule(spec))
    count = 2 * batch_of(spec)
    with torch.no_grad():
        got, index, _ = reduced.module._chosen(images(count))
        if "layer=-2" in spec:
            x = model._pos_embed(model.patch_embed(images(count)))
            whole = model.blocks[1](model.blocks[0](model.norm_pre(x)))
        else:
            whole = model(images(count))
    pictures = whole.reshape(2, -1, whole.shape[2])
    want = torch.stack([rows[places] for rows, places in zip(pictures, index, strict=True)])
    assert got.shape == (2, reduced.tokens[-1], 32)
    assert relative(got, want) < ROUNDING
    assert (index % 18 >= 2).all()  # neither the class token nor the register


@pytest.mark.parametrize("spec", SPECS)
def test_both_lowerings_and_any_batch_give_the_same(encoder, spec):
    vit, each = encoder[1], batch_of(spec)
    gather, matmul = (reduce(vit, parse_schedule(spec), way).module for way in ("gather", "matmul"))
    batch = images(2 * each)
    with torch.no_grad():
        together = gather(batch)
        assert relative(matmul(batch), together) < ROUNDING
        assert relative(torch.cat([gather(batch[:each]), gather(batch[each:])]), together) < ROUNDING


EXPORTED = ["fastervlm:tokens=5", "vtccls:tokens=5,start=1", "fopru:keep=0.5,strategy=row", "hiprune:tokens=12,alpha=1"]
EXPORTED += ["todre:tokens=5", "hired:tokens=20,parts=2x2"]


class Together(torch.nn.Module):
    """One encoder with several choices behind it, all tokens in one row: one export covers them."""

    def __init__(self, modules):
        super().__init__()
        self.parts = torch.nn.ModuleList(modules)

    def forward(self, images):
        first = self.parts[0]
        x, taps = first.stem(images), []
        for block in first.blocks:
            x, _, _, tap = block(x, Tokens(), True)
            taps.append(tap)
        chosen = [part.chooser([taps[number - 1] for number in part.reads], x)[0] for part in self.parts]
        return torch.cat([first.head(rows, None).reshape(1, -1, 32) for rows in chosen], dim=1)


@pytest.mark.slow
def test_the_programs_are_static_and_onnx_runtime_agrees(encoder, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    from edgevit.export.to_onnx import to_onnx

    modules = [reduce(encoder[1], parse_schedule(spec)).module for spec in EXPORTED]
    to_onnx(trace(Together(modules), InputSpec(5, 32, 32)), tmp_path / "selected.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(tmp_path / "selected.onnx"), options, providers=["CPUExecutionProvider"])
    for seed in range(3):
        given = images(5, seed)
        with torch.no_grad():
            want = torch.cat([module(given).reshape(1, -1, 32) for module in modules], dim=1).numpy()
        got = session.run(None, {"images": given.numpy()})[0]
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("spec", ["fastervlm:tokens=4", "fastervlm:tokens=4,layer=-2", "vtccls:keep=0.5,layer=-3"])
def test_counted_macs_are_what_the_smaller_program_multiplies(tiny_vit, spec, classes):
    vit = adapt(tiny_vit(depth=3, global_pool="", num_classes=classes))
    reduced = reduce(vit, parse_schedule(spec))
    measured = dense_macs(reduced.module, (1, 3, 32, 32))
    rows = sum(17 * 32 for _ in reduced.module.reads)  # the class rows: H * N * d each, not counted by convention
    assert rows <= measured - reduced.reduced_macs < 2 * rows  # their mean over heads may be a product too
    assert reduced.dense_macs == dense_macs(vit.module, (1, 3, 32, 32))
    assert (reduced.reduced_macs < reduced.dense_macs) == (classes > 0 or "layer" in spec)


def test_only_the_blocks_that_run_are_in_the_module(encoder):
    reduced = reduce(encoder[1], parse_schedule("fastervlm:tokens=4,layer=-2"))
    assert len(reduced.module.blocks) == 2
    assert reduced.tokens == (18, 4)
    assert "neither final norm nor head" in reduced.notes[0]
    assert reduced.undo() is encoder[0]
    program = trace(reduced.module, InputSpec(1, 32, 32)).program
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    assert any("blocks_1_" in name for name in read)
    assert not any("blocks_2_" in name or name.endswith("model_norm_weight") for name in read)


def test_a_pooling_model_is_read_behind_an_earlier_layer(tiny_vit):
    vit = adapt(tiny_vit(depth=3))
    with pytest.raises(ScheduleError, match=r"this model pools them \(token\); load the encoder without pooling, or"):
        reduce(vit, parse_schedule("fastervlm:tokens=4"))
    reduced = reduce(vit, parse_schedule("fastervlm:tokens=4,layer=-2"))
    assert isinstance(reduced.module, SelectingVit)
    with torch.no_grad():
        assert reduced.module(images(1)).shape == (1, 4, 32)
    assert reduced.reduced_macs < reduced.dense_macs


@pytest.mark.parametrize("name", SELECTORS)
def test_a_model_without_class_token(tiny_vit, name):
    vit = adapt(tiny_vit(class_token=False, global_pool="", num_classes=0))
    schedule = parse_schedule(f"{name}:tokens=4")
    if method(name).needs_class_token:
        with pytest.raises(ScheduleError, match="this model has no class token; use hiprune, fopru or todre"):
            reduce(vit, schedule)
    else:
        with torch.no_grad():
            assert reduce(vit, schedule).module(images(1)).shape == (1, 4, 32)


def test_a_head_that_mixes_tokens_is_refused(encoder):
    from dataclasses import replace

    class Mixing(torch.nn.Module):
        def forward(self, x, size):
            return x - x.mean(dim=1, keepdim=True)

    class Map(torch.nn.Module):
        def forward(self, x, size):
            return x[:, 2:].reshape(-1, 4, 4, 32)

    for head in (Mixing(), Map()):
        with pytest.raises(ScheduleError, match="this model's head needs all of them; layer=-2 returns the tokens"):
            reduce(replace(encoder[1], head=head), parse_schedule("fastervlm:tokens=4"))


def test_stages_windows_and_maps_are_refused(encoder):
    from dataclasses import replace

    vit = encoder[1]
    stage = vit.stages[0]
    wrong = [(stage, stage), (replace(stage, groups=4),), (replace(stage, leave=lambda x: x),)]
    for stages in wrong:
        with pytest.raises(ScheduleError, match="has windows, several stages or a map behind its blocks"):
            reduce(replace(vit, stages=stages), parse_schedule("fopru:tokens=4"))


def test_returning_every_patch_of_a_model_without_prefix_leaves_it_alone(tiny_vit):
    model = tiny_vit(class_token=False, global_pool="", num_classes=0)
    assert reduce(adapt(model), parse_schedule("fopru:keep=1")).module is model


def test_a_batch_that_is_not_whole_pictures_is_refused(encoder):
    reduced = reduce(encoder[1], parse_schedule("hired:tokens=20,parts=2x2"))
    with pytest.raises(EdgeVitError, match="reads 5 images for one picture, got a batch of 4; pass --batch 5"):
        trace(reduced.module, InputSpec(4, 32, 32))


def test_inspect_draws_and_export_builds(cli, tmp_path, encoder, pictures):
    path = tmp_path / "encoder.pt"
    torch.save(encoder[0], path)
    spec = "fastervlm:tokens=6,layer=-2"
    found = cli("inspect", path, "--trust-pickle", "--reduce", spec, "--image", pictures.files[0], "--json").json
    assert found["tokens"] == [18, 6]
    assert found["schedule"] == spec
    assert (tmp_path / "tokens.png").is_file()
    parts = cli("inspect", path, "--trust-pickle", "--reduce", "hired:tokens=20,parts=2x2", "--json").json
    assert parts["tokens"] == [18, 18, 20]
    built = cli(
        "export", path, "--trust-pickle", "--target", "fake", "--reduce", "hired:tokens=20,parts=2x2", "--batch", "5",
        "-o", tmp_path / "bundle", "--json",
    )  # fmt: skip
    assert built.json["tokens"] == [18, 18, 20], built.err


def test_layer_minus_two_is_what_llava_reads_of_clip():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(num_hidden_layers=3, **sizes)).eval()
    reduced = reduce(adapt(model), parse_schedule("fastervlm:tokens=5,layer=-2"))
    with torch.no_grad():
        got, index, _ = reduced.module._chosen(images(2))
        read = model(images(2), output_hidden_states=True).hidden_states[-2]
    want = torch.stack([rows[places] for rows, places in zip(read, index, strict=True)])
    assert relative(got, want) < ROUNDING

"""Models of transformers and torchvision: taken apart they compute what their library computes."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.adapters.hf import OneTensor
from edgevit.errors import ScheduleError, UnsupportedModel
from edgevit.export.to_onnx import to_onnx
from edgevit.export.trace import trace
from edgevit.reduce import reduce
from edgevit.reduced_vit import dense_parts
from edgevit.stages import InputSpec
from edgevit.tokens.protocol import Tokens
from edgevit.tokens.schedule import parse_schedule

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

BUILDERS = runpy.run_path(str(Path(__file__).with_name("families_other.py")))
FAMILIES = BUILDERS["FAMILIES"]
ALL = {**FAMILIES, **BUILDERS["VARIANTS"]}
ROUNDING = 1e-5  # float32 sums in the same order; fused kernels may differ in the last bits

VIT, DEIT, DINO = "transformers ViT (classifier)", "transformers DeiT distilled", "transformers DINOv2 (classifier)"
VIT_TOKENS, REGISTERS = "transformers ViT (token outputs)", "transformers DINOv2 with registers (token outputs)"
CLIP, SIGLIP = "transformers CLIP vision (image embedding)", "transformers SigLIP vision (attention pooling)"
TORCHVISION = "torchvision VisionTransformer"


def relative(got, want):
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def images_for(parts, batch=2):
    return torch.rand(batch, 3, *parts.image_size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def library_output(model, parts, images):
    """What the library itself returns, without edgevit's wrapper."""
    out = model(images)
    if isinstance(out, torch.Tensor):
        return out
    return out[0] if isinstance(out, tuple) else out[parts.module.output]


@pytest.fixture(scope="module")
def model_of():
    """One model and its parts per name, built once."""
    built = {}

    def get(name):
        if name not in built:
            model = ALL[name]()
            built[name] = model, adapt(model)
        return built[name]

    return get


def test_the_matrix_gets_every_supported_kind():
    assert len(FAMILIES) == 11
    assert set(FAMILIES).isdisjoint(BUILDERS["VARIANTS"])


@pytest.mark.parametrize("name", ALL)
def test_parts_equal_what_the_library_computes(model_of, name):
    model, parts = model_of(name)
    images = images_for(parts)
    with torch.no_grad():
        want, got = library_output(model, parts, images), dense_parts(parts)(images)
        other = library_output(model, parts, images.flip(0))
    assert relative(got, want) < ROUNDING
    assert relative(other, want) > 1e-2  # the model reads its input, so equality means something


@pytest.mark.parametrize(
    ("name", "output", "pooling", "prefix"),
    [
        (VIT, "logits", "token", 1),
        (VIT_TOKENS, "last_hidden_state", "none", 1),
        ("ViT without pooler", "last_hidden_state", "none", 1),
        (DEIT, "logits", "token", 2),
        ("DeiT", "last_hidden_state", "none", 2),
        (DINO, "logits", "avg", 1),
        (REGISTERS, "last_hidden_state", "none", 5),
        ("DINOv2 registers classifier", "logits", "avg", 5),
        (CLIP, "image_embeds", "token", 1),
        ("transformers CLIP vision (token outputs)", "last_hidden_state", "none", 1),
        ("CLIP classifier", "logits", "avg", 1),
        (SIGLIP, "pooler_output", "map", 0),
        ("SigLIP without head", "last_hidden_state", "none", 0),
        ("transformers SigLIP (classifier)", "logits", "avg", 0),
    ],
)
def test_which_tensor_a_class_returns_and_how_it_pools(model_of, name, output, pooling, prefix):
    _, parts = model_of(name)
    assert (parts.module.output, parts.pooling, parts.prefix_tokens) == (output, pooling, prefix)
    assert parts.class_token is (prefix > 0)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        (VIT_TOKENS, "pooler_output"),
        ("transformers DINOv2 (token outputs)", "pooler_output"),
        ("transformers CLIP vision (token outputs)", "pooler_output"),
        (CLIP, "last_hidden_state"),
        (SIGLIP, "last_hidden_state"),
    ],
)
def test_another_output_by_name(model_of, name, output):
    model, _ = model_of(name)
    parts = adapt(OneTensor(model, output))
    images = images_for(parts)
    with torch.no_grad():
        assert relative(dense_parts(parts)(images), model(images)[output]) < ROUNDING
    assert parts.pooling == ("none" if output == "last_hidden_state" else "token")


@pytest.mark.parametrize("name", FAMILIES)
def test_merging_runs_with_the_right_count(model_of, name):
    _, parts = model_of(name)
    start = parts.prefix_tokens + 16
    reduced = reduce(parts, parse_schedule("tome:r=3"))
    assert reduced.tokens == (start - 3, start - 6, start - 9)
    images = images_for(parts)
    with torch.no_grad():
        (got, plans), want = reduced.module.run(images), parts.module(images)
    assert [plan.slots().max().item() + 1 for plan in plans] == list(reduced.tokens)
    assert torch.isfinite(got).all()
    assert relative(got, want) > 1e-3  # it did reduce
    assert reduced.reduced_macs < 0.85 * reduced.dense_macs


@pytest.mark.parametrize("name", [VIT, DEIT, CLIP, TORCHVISION])
def test_pruning_runs_with_the_right_count(model_of, name):
    _, parts = model_of(name)
    reduced = reduce(parts, parse_schedule("evit:keep=0.5@1,2"))
    assert reduced.tokens[:2] == (parts.prefix_tokens + 8 + 1, parts.prefix_tokens + 5 + 1)
    with torch.no_grad():
        assert torch.isfinite(reduced.module(images_for(parts))).all()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (VIT_TOKENS, "needs every token back"),
        (REGISTERS, "needs every token back"),
        (DINO, r"pools over patches \(avg\)"),
        (SIGLIP, "no class token"),
    ],
)
def test_pruning_is_refused_where_the_output_needs_the_patches(model_of, name, says):
    _, parts = model_of(name)
    with pytest.raises(ScheduleError, match=says):
        reduce(parts, parse_schedule("evit:keep=0.5@1"))


def without_positions(model):
    """Position embeddings at zero, so that equal patches are equal tokens."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_embedding" in name or "pos_embedding" in name:
                parameter.zero_()
    return model


def repeated_patches():
    """An image whose 16 patches are 4 patches four times each."""
    tiles = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    image = torch.stack([tiles[i // 4] for i in range(16)]).reshape(4, 4, 3, 8, 8)
    return image.permute(2, 0, 3, 1, 4).reshape(1, 3, 32, 32)


@pytest.mark.parametrize("name", FAMILIES)
def test_merging_identical_tokens_changes_nothing(name):
    model, image = without_positions(ALL[name]()), repeated_patches()
    parts = adapt(model)
    with torch.no_grad():
        want = parts.module(image)
        merged = reduce(parts, parse_schedule("tome:r=2@1,2")).module(image)  # every token has a twin there
        unweighted = reduce(parts, parse_schedule("tome:r=2,prop=off@1,2")).module(image)
    assert relative(merged, want) < ROUNDING  # attention and pooling count each token as often as before
    assert relative(unweighted, want) > 1e-4  # and without sizes they do not, so the equality is earned


@pytest.mark.parametrize("name", [VIT, REGISTERS, CLIP, SIGLIP, TORCHVISION])
def test_queries_keys_and_values_alone_are_those_of_the_whole_projection(model_of, name):
    _, parts = model_of(name)
    x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(3))
    for block in parts.blocks:
        with torch.no_grad():
            tap, half, values = block.project(x, Tokens()), block.query_keys(x, Tokens()), block.values(x)
        torch.testing.assert_close((half.q, half.k, values), (tap.q, tap.k, tap.v), rtol=0, atol=1e-6)
        assert half.v.shape[-1] == 0
        assert half.scale == tap.scale


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "schedule", "batch"),
    [(VIT_TOKENS, "tome:r=3@2", 4), (SIGLIP, "tome:r=3@2", 1), (TORCHVISION, "evit:keep=0.5@2", 4)],
)  # every family and method at both batch sizes: tests/test_support.py
def test_the_reduced_model_exports_and_onnx_runtime_agrees(model_of, tmp_path, name, schedule, batch):
    import onnxruntime

    _, parts = model_of(name)
    reduced = reduce(parts, parse_schedule(schedule))
    images = images_for(parts, 4)
    to_onnx(trace(reduced.module, InputSpec(batch, 32, 32)), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    got = np.concatenate([session.run(None, {"images": part.numpy()})[0] for part in images.split(batch)])
    with torch.no_grad():
        want = reduced.module(images)
    assert relative(torch.from_numpy(got), want) < 1e-4  # another library's kernels


# What is refused


def refusal(model):
    with pytest.raises(UnsupportedModel) as refused:
        adapt(model)
    return str(refused.value)


def layer_of(model):
    """The first block of any of them, and its attention."""
    if hasattr(model, "encoder") and hasattr(model.encoder, "layers"):
        layer = model.encoder.layers[0]
    else:
        layer = model.vit.layers[0]
    return layer, next(part for part in layer.children() if "Attention" in type(part).__name__)


@pytest.mark.parametrize("name", [VIT, SIGLIP, TORCHVISION])
def test_an_unknown_child(name):
    for index in range(2):
        model = ALL[name]()
        layer_of(model)[index].adapter = nn.Identity()
        assert "has adapter, which this adapter does not run" in refusal(model)
    model = ALL[name]()
    model.extra = nn.Identity()
    assert f"{type(model).__name__} has extra" in refusal(model)


@pytest.mark.parametrize("name", [VIT, SIGLIP, TORCHVISION])
def test_a_block_or_attention_of_another_type(name):
    for index in range(2):
        model = ALL[name]()
        part = layer_of(model)[index]
        own = type(part)
        part.__class__ = type("Mine", (own,), {})
        text = refusal(model)
        assert "is Mine; this adapter runs" in text
        assert own.__name__ in text


@pytest.mark.parametrize("name", [VIT, SIGLIP, TORCHVISION])
def test_a_patched_forward(name):
    model = ALL[name]()
    layer = layer_of(model)[0]
    layer.forward = layer.forward
    assert "with a patched forward" in refusal(model)
    model = ALL[name]()
    model.__class__ = type("Mine", (type(model),), {"forward": lambda self, x, **options: x})
    assert "Mine.forward is not the library's own" in refusal(model)


@pytest.mark.parametrize("name", [VIT, SIGLIP, TORCHVISION])
def test_training_mode(name):
    assert "is in training mode; call .eval() first" in refusal(ALL[name]().train())


@pytest.mark.parametrize("name", [VIT, SIGLIP, TORCHVISION])
def test_a_hook_that_changes_a_block(name):
    model = ALL[name]()
    layer_of(model)[0].register_forward_hook(lambda module, inputs, output: output * 1.01)
    assert "differ from the model" in refusal(model)


@pytest.mark.parametrize("name", [VIT, SIGLIP, TORCHVISION])
def test_a_library_whose_block_computes_something_else(monkeypatch, name):
    model = ALL[name]()
    cls = type(layer_of(model)[0])
    original = cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, *inputs, **options: 1.01 * original(self, *inputs, **options))
    assert "this version of its library does something the adapter does not run" in refusal(model)


def test_an_attention_pooling_that_is_not_siglips():
    model = ALL[SIGLIP]()
    model.head.extra = nn.Identity()
    assert "head has extra" in refusal(model)


def test_an_attention_with_more_keys_than_tokens():
    model = ALL[TORCHVISION]()
    model.encoder.layers[0].self_attention.add_zero_attn = True
    assert "bias_k or add_zero_attn" in refusal(model)


def test_an_output_that_the_class_does_not_have(model_of):
    model, _ = model_of(VIT)
    assert "ViTForImageClassification through this adapter gives logits, not 'hidden'" in refusal(
        OneTensor(model, "hidden")
    )


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: OneTensor(model, "reconstruction")])
def test_a_class_of_a_known_family_that_is_no_encoder(wrap):
    model = BUILDERS["hf"]("ViT", BUILDERS["VIT"], "ForMaskedImageModeling", encoder_stride=8)
    assert refusal(wrap(model)).startswith("ViTForMaskedImageModeling has no adapter")


def test_both_towers_of_clip_have_no_adapter():
    import transformers

    sizes = BUILDERS["VIT"]
    text = {key: sizes[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")}
    config = transformers.CLIPConfig(
        vision_config=dict(sizes), text_config={**text, "num_hidden_layers": 1, "vocab_size": 49408}
    )
    assert refusal(transformers.CLIPModel(config).eval()).startswith("CLIPModel has no adapter")

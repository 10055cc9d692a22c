"""Token reduction in a foreign file: the same as in the module that the file was written from."""

import json

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.errors import UnsupportedModel
from edgevit.load import load
from edgevit.reduce import reduce
from edgevit.tokens.schedule import parse_schedule

slow = pytest.mark.slow
EXPORTERS = [  # opset, dynamo
    pytest.param(11, False, id="torchscript-11"),
    pytest.param(17, False, id="torchscript-17"),
    pytest.param(18, True, id="dynamo-18", marks=slow),
    pytest.param(20, True, id="dynamo-20"),
    pytest.param(23, True, id="dynamo-23", marks=slow),
]
SAME = 1e-4  # relative: float32, products in another order


def filled(module):
    """Weights large enough that images do not look alike, and tokens are not merged on a tie."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25, generator=generator)
    return module.eval()


def hugging(kind, **options):
    """transformers' own model with tiny sizes, and the one output it is used for."""
    import transformers

    from edgevit.adapters.hf import OneTensor, default_output

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = getattr(transformers, kind[0])(**sizes, **options)
    module = getattr(transformers, kind[1])(config)
    return OneTensor(filled(module), default_output(module)).eval()


def hugging_vit():
    return hugging(("ViTConfig", "ViTForImageClassification"), intermediate_size=64, num_labels=10)


def registers():
    kind = "Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification"
    return hugging(kind, num_labels=10)


def siglip():
    return hugging(("SiglipVisionConfig", "SiglipVisionModel"), intermediate_size=64)


def same_reduction(path, module, spec):
    """Reduce both roads by one schedule: tokens, cost and outputs agree. The foreign model's parts."""
    checkpoint = load(str(path))
    theirs, ours = adapt(checkpoint.module), adapt(module)
    found, wanted = (reduce(vit, parse_schedule(spec)) for vit in (theirs, ours))
    assert found.tokens == wanted.tokens
    assert (found.dense_macs, found.reduced_macs) == (wanted.dense_macs, wanted.reduced_macs)
    assert (theirs.prefix_tokens, theirs.grid) == (ours.prefix_tokens, ours.grid)
    images = torch.randn(
        checkpoint.module.batch or 2, 3, *theirs.image_size, generator=torch.Generator().manual_seed(5)
    )
    with torch.no_grad():
        want, got, dense = wanted.module(images), found.module(images), module(images)
    assert float((got - want).abs().max() / want.abs().max()) < SAME
    assert float((dense - want).abs().max() / want.abs().max()) > 10 * SAME  # the reduction does something
    return theirs


@pytest.mark.parametrize("spec", ["tome:r=4", pytest.param("evit:keep=0.6@1", marks=slow)])
@pytest.mark.parametrize(("opset", "dynamo"), EXPORTERS)
def test_a_vit_from_each_exporter(exported, tiny_vit, opset, dynamo, spec):
    module = tiny_vit()
    for block in module.blocks:
        block.attn.fused_attn = opset > 13  # older ones cannot write torch's own attention
    vit = same_reduction(exported(module, opset, dynamo), module, spec)
    assert vit.pooling == "token"
    assert vit.class_token


VARIANTS = {
    "mean of the patches": {"global_pool": "avg", "class_token": False},
    "mean beside a class token": {"global_pool": "avg"},
    "registers, layer scale": {"reg_tokens": 4, "init_values": 0.5, "no_embed_class": True},
    "normed queries and keys": {"qk_norm": True},
    "wide, one block": {"img_size": (32, 64), "depth": 1, "global_pool": "avg"},
}


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=slow)])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_timm(exported, tiny_vit, options, dynamo):
    module = tiny_vit(**options)
    vit = same_reduction(
        exported(module, 18 if dynamo else 17, dynamo, size=options.get("img_size", 32)), module, "tome:r=4"
    )
    assert vit.pooling == options.get("global_pool", "token")


SEPARATE = [
    pytest.param(hugging_vit, False, id="vit-torchscript"),
    pytest.param(hugging_vit, True, id="vit-dynamo", marks=slow),
    pytest.param(registers, True, id="registers-dynamo", marks=slow),  # torchscript cannot write its resize
    pytest.param(siglip, False, id="siglip-torchscript", marks=slow),
    pytest.param(siglip, True, id="siglip-dynamo", marks=slow),
]


@pytest.mark.parametrize(("build", "dynamo"), SEPARATE)
def test_separate_projections(exported, build, dynamo):
    """Hugging Face's towers. SigLIP's head is an attention over all tokens, which gets every one back."""
    module = build()
    vit = same_reduction(exported(module, 18 if dynamo else 17, dynamo), module, "tome:r=4")
    assert (vit.pooling == "none") == (build is siglip)


def test_every_training_free_method_of_a_plain_vit(exported, tiny_vit):
    module = tiny_vit()
    vit, own = adapt(load(str(exported(module, 17, False))).module), adapt(module)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    for spec in ("mctf:r=3", "tps:keep=0.7@1", "pitome:ratio=0.8", "tofu:r=3"):
        with torch.no_grad():
            got, want = (reduce(one, parse_schedule(spec)).module(images) for one in (vit, own))
        torch.testing.assert_close(got, want, rtol=SAME, atol=SAME)


def test_export_with_a_schedule(cli, exported, tiny_vit):
    path = exported(tiny_vit(), 17, False)
    result = cli("export", path, "--target", "ort", "--reduce", "tome:r=4", "-o", "out", "--json")
    assert result.code == 0, result.err
    assert result.json["tokens"] == [13, 9]
    assert json.loads((path.parent / "out" / "manifest.json").read_text())["check"]["sqnr_db"] > 80  # float32


# What is refused, by the node where it stopped


def refusal(path):
    with pytest.raises(UnsupportedModel) as caught:
        adapt(load(str(path)).module)
    text = str(caught.value)
    assert "\n" not in text
    assert "exports dense" in text or "batch" in text
    return text


class Mixed(nn.Module):
    """A plain ViT with one more thing done to its tokens in front of the last block."""

    def __init__(self, vit, mix):
        super().__init__()
        self.vit, self.mix = vit, mix

    def forward(self, images):
        vit = self.vit
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        x = vit.blocks[0](x)
        x = vit.blocks[1](self.mix(x))
        return vit.forward_head(vit.norm(x))


def test_what_mixes_tokens_is_refused_by_name(exported, tiny_vit):
    over_tokens = torch.randn(17, 17)
    text = refusal(exported(Mixed(tiny_vit(), lambda x: x + over_tokens @ x), 17, False))
    assert "each token alone was expected" in text
    assert "(MatMul)" in text


def test_positions_inside_the_blocks_are_refused_by_name(exported, tiny_vit):
    place = torch.randn(17, 32)
    text = refusal(exported(Mixed(tiny_vit(), lambda x: x + place), 17, False))
    assert "node /Add_1 (Add)" in text
    assert "each token alone was expected" in text


def test_a_convolution_has_no_attention(onnx_file):
    path = onnx_file("g (float[n, 3, 8, 8] x) => (float[n, 3] y) { y = ReduceMean <axes = [2, 3], keepdims = 0> (x) }")
    assert "no node computes softmax" in refusal(path)


def test_a_file_of_two_images_is_refused(exported, tiny_vit):
    from edgevit.from_onnx.program import ForeignModel

    module = load(str(exported(tiny_vit(), 17, False))).module
    assert isinstance(module, ForeignModel)
    module.batch = 2
    with pytest.raises(UnsupportedModel, match="exported for batch 2"):
        adapt(module)

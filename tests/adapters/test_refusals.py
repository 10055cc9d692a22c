"""What the adapter does not run is refused by name, with the reason; nothing is run in silence."""

import importlib
import types

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt, prove_identity
from edgevit.adapters.refused import REASONS
from edgevit.errors import UnsupportedModel
from edgevit.stages import VitModel

timm = pytest.importorskip("timm")
from timm.layers.attention import Attention  # noqa: E402
from timm.models import vision_transformer as timm_vit  # noqa: E402


def refusal(model):
    with pytest.raises(UnsupportedModel) as refused:
        adapt(model)
    return str(refused.value)


def test_blocks_of_another_type(vit):
    text = refusal(vit(block_fn=timm_vit.DiffParallelScalingBlock, num_heads=2))
    assert "blocks.0 is DiffParallelScalingBlock" in text
    assert "this adapter runs timm.models.vision_transformer.Block or" in text


def test_attention_of_another_type(vit):
    assert "blocks.0.attn is DiffAttention" in refusal(vit(attn_layer="diff", num_heads=2))


def test_a_subclass_of_the_block_is_not_the_block(vit):
    class Mine(timm_vit.Block):
        pass

    assert "blocks.0 is Mine" in refusal(vit(block_fn=Mine))


@pytest.mark.parametrize(("where", "get"), [("blocks.1", lambda b: b), ("blocks.1.attn", lambda b: b.attn)])
def test_a_patched_forward_on_an_instance(vit, where, get):
    model = vit()
    part = get(model.blocks[1])
    part.forward = types.MethodType(lambda self, x, **masks: x, part)
    assert f"{where} is {type(part).__name__} with a patched forward" in refusal(model)


@pytest.mark.parametrize("method", ["forward", "forward_features", "forward_head", "pool", "_pos_embed"])
def test_a_patched_method_of_the_model(vit, method):
    model = vit()
    setattr(model, method, getattr(model, method))
    assert f"VisionTransformer.{method} is not the library's own" in refusal(model)


def test_an_unknown_child_of_a_block(vit):
    model = vit()
    model.blocks[1].adapter = nn.Identity()
    text = refusal(model)
    assert "blocks.1 has adapter, which this adapter does not run" in text
    assert "norm1" in text


@pytest.mark.parametrize("where", ["", "blocks.0.attn"])
def test_an_unknown_child_elsewhere(vit, where):
    model = vit()
    model.get_submodule(where).extra = nn.Identity()
    assert f"{where or 'VisionTransformer'} has extra" in refusal(model)


def test_a_subclass_that_overrides_forward_features(vit):
    class Mine(timm_vit.VisionTransformer):
        def forward_features(self, x, attn_mask=None):
            return super().forward_features(x)

    assert "Mine.forward_features is not the library's own" in refusal(vit(cls=Mine))


def test_a_subclass_that_overrides_nothing_is_taken(vit):
    class Mine(timm_vit.VisionTransformer):
        pass

    assert adapt(vit(cls=Mine)).prefix_tokens == 1


def test_training_mode(vit):
    assert "is in training mode; call .eval() first" in refusal(vit().train())


def test_dynamic_image_size(vit):
    assert "dynamic_img_size=True; build it with a fixed img_size" in refusal(vit(dynamic_img_size=True))


def test_random_patch_dropping(vit):
    assert "patch_drop_rate=0" in refusal(vit(patch_drop_rate=0.5))


def test_a_pooling_that_would_ignore_token_sizes(vit):
    assert "global_pool='prr'" in refusal(vit(global_pool="prr"))


def test_a_module_of_no_family_is_refused_with_the_list_of_known_ones():
    text = refusal(nn.Sequential(nn.Flatten(), nn.Linear(3072, 7)).eval())
    assert text.startswith("Sequential has no adapter, so its tokens cannot be reduced; it exports dense")
    assert "Families with an adapter: timm VisionTransformer (ViT, DeiT" in text


def test_every_refused_family_exists_and_is_refused_with_its_reason():
    for path, reason in REASONS.items():
        where, name = path.rsplit(".", 1)
        cls = getattr(importlib.import_module(where), name)
        text = refusal(type("Mine", (cls,), {"__init__": nn.Module.__init__})().eval())  # a subclass is no way around
        assert text == f"Mine cannot have its tokens reduced: {reason}; it exports dense (drop --reduce)"


def test_a_library_whose_block_computes_something_else(vit, monkeypatch):
    def newer(self, x, attn_mask=None, is_causal=False):
        x = x + self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal))
        return x + 1.01 * self.ls2(self.mlp(self.norm2(x)))

    monkeypatch.setattr(timm_vit.Block, "forward", newer)
    text = refusal(vit())
    assert "the adapter's parts differ from the model by" in text
    assert "this version of its library does something the adapter does not run" in text


def test_a_library_whose_attention_computes_something_else(vit, monkeypatch):
    original = Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda self, x, **masks: 1.01 * original(self, x, **masks))
    assert "differ from the model" in refusal(vit())


def test_a_hook_that_changes_a_block(vit):
    model = vit()
    model.blocks[0].register_forward_hook(lambda module, inputs, output: output * 1.01)
    assert "differ from the model" in refusal(model)


def test_outputs_that_are_not_numbers_prove_nothing(vit):
    model = vit()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    assert "differ from the model by nan" in refusal(model)


def test_the_proof_sees_a_difference_just_above_its_limit(vit):
    model = vit()
    parts = adapt(model)
    values = {name: getattr(parts, name) for name in parts.__dataclass_fields__}

    class Off(nn.Module):
        def forward(self, x, size):
            return parts.head(x, size) * (1 + 2e-5)

    with pytest.raises(UnsupportedModel, match=r"differ from the model by 2\.\de-05 \(limit 1e-05\)"):
        prove_identity(VitModel(**{**values, "head": Off()}))

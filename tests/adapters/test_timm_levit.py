"""timm's LeViT and EfficientFormer: offsets that travel; what every staged family must hold is in test_staged.py."""

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.errors import UnsupportedModel
from edgevit.reduce import reduce
from edgevit.tokens.protocol import Tokens
from edgevit.tokens.schedule import parse_schedule

pytest.importorskip("timm")
from timm.models.efficientformer import EfficientFormer

from tests.adapters.families_staged import efficientformer, levit, pictures

VARIANTS = {
    "s16": lambda: levit(stem_type="s16", depth=(1, 1, 1)),
    "pooled_queries": lambda: levit(down_op="pool"),
    "no_pooling": lambda: levit(global_pool="", num_classes=0),
    "conv_no_pooling": lambda: levit(global_pool="", num_classes=0, use_conv=True),
    "wide_values": lambda: levit("Levit", attn_ratio=4, mlp_ratio=1),
    "one_stage": lambda: levit("Levit", embed_dim=(16,), num_heads=(2,), depth=(2,)),
    "one_conv_stage": lambda: levit("Levit", embed_dim=(16,), num_heads=(2,), depth=(2,), use_conv=True),
    "efficientformer_tokens": lambda: efficientformer(global_pool=""),
    "efficientformer_all_attention": lambda: efficientformer(num_vit=3),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(check, variant):
    check.one_pair_merges(VARIANTS[variant]())


def offset(first, second, across):
    """Down and across between two positions, as an index into the learned biases of a map."""
    down = abs(first // across - second // across)
    return down * across + abs(first % across - second % across)


@pytest.mark.parametrize("build", [levit, efficientformer])
def test_the_bias_of_two_tokens_is_that_of_the_places_they_keep(build):
    parts = adapt(build())
    block, across, count = parts.blocks[0], parts.grid[1], parts.tokens
    attention = getattr(block.block, "attn", None) or block.block.token_mixer
    channels = next(m for m in attention.qkv.modules() if isinstance(m, nn.Linear)).in_features
    generator = torch.Generator().manual_seed(0)
    place = torch.stack([torch.randperm(count, generator=generator)[:9] for _ in range(2)])
    with torch.no_grad():
        bias = block.project(torch.randn(2, 9, channels, generator=generator), Tokens(None, place)).bias
    for image in range(2):
        where = place[image].tolist()
        for i in range(9):
            for j in range(9):
                want = attention.attention_biases[:, offset(where[i], where[j], across)]
                assert torch.equal(bias[image, :, i, j], want)


@pytest.mark.parametrize("build", [levit, efficientformer])
def test_a_merged_token_keeps_the_place_of_its_target(build):
    parts = adapt(build())
    module = reduce(parts, parse_schedule("tome:r=3@1")).module
    seen = []
    module.blocks[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].place))
    with torch.no_grad():
        plan = module.run(pictures(2, parts.image_size))[1][0]
    assert torch.equal(seen[0], plan.source())
    assert [len(set(row)) for row in seen[0].tolist()] == [parts.tokens - 3] * 2


def test_stages_of_levit():
    parts = adapt(levit())
    assert [(s.grid, s.restores) for s in parts.stages] == [((8, 8), True), ((4, 4), True), ((2, 2), False)]
    assert parts.positional
    assert parts.image_size == (64, 64)


def test_efficientformer_without_attention_is_refused():
    with pytest.raises(UnsupportedModel, match="EfficientFormer has no attention block"):
        adapt(EfficientFormer(depths=(1,), embed_dims=(8,)).eval())


def test_a_stem_of_ones_own_is_refused():
    model = levit()
    model.stem = nn.Sequential(*model.stem)
    with pytest.raises(UnsupportedModel, match=r"stem is Sequential; this adapter runs timm\.models.levit\.Stem8"):
        adapt(model)


def test_tracing_leaves_no_tensor_without_values_behind():
    from edgevit.export.trace import trace
    from edgevit.stages import InputSpec

    model = levit("Levit", embed_dim=(16, 24), num_heads=(2, 3), depth=(1, 1))
    module = reduce(adapt(model), parse_schedule("tome:r=1@1")).module
    for stage in model.stages:
        for part in stage.modules():
            if hasattr(part, "attention_bias_cache"):
                part.attention_bias_cache = {}
    trace(module, InputSpec(1, 64, 64))
    with torch.no_grad():
        assert torch.isfinite(model(pictures(1, (64, 64)))).all()

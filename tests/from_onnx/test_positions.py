"""Positions inside the attention of a foreign file: tokens that are left keep theirs, as in timm's own model."""

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError, UnsupportedModel
from edgevit.load import load
from edgevit.reduce import reduce
from edgevit.tokens.schedule import parse_schedule
from tests.from_onnx.test_reduce import filled, same_reduction

timm = pytest.importorskip("timm")
slow = pytest.mark.slow
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "num_classes": 10, "depth": 2}
ROPE = {"use_rot_pos_emb": True}


def beit(**options):
    from timm.models.beit import Beit

    return in_products(filled(Beit(**SIZES, use_abs_pos_emb=False, **options)))


def in_products(module):
    """Attention as its formula, where an exporter cannot write timm's call of the whole operator."""
    for block in module.blocks:
        block.attn.fused_attn = False
    return module


def relpos(**options):
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos

    return filled(VisionTransformerRelPos(**SIZES, **options))


def eva(**options):
    from timm.models.eva import Eva

    return in_products(filled(Eva(**SIZES, **ROPE, **options)))


EVA02 = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "ref_feat_shape": (2, 2)}
DINOV3 = {"rope_type": "dinov3", "use_abs_pos_emb": False, "num_reg_tokens": 4, "rope_rotate_half": True}
MIXED = {"rope_type": "mixed", "attn_type": "rope", "qk_norm": True}
MODELS = [  # build, dynamo, opset; what a schedule of the library's own model is compared with
    pytest.param(lambda: beit(use_rel_pos_bias=True), False, 17, id="beit"),
    pytest.param(lambda: beit(use_rel_pos_bias=True, global_pool="token"), True, 20, id="beit-dynamo", marks=slow),
    pytest.param(lambda: beit(use_shared_rel_pos_bias=True), True, 23, id="beit-dynamo-23", marks=slow),
    pytest.param(lambda: relpos(rel_pos_type="bias"), False, 14, id="relpos", marks=slow),
    pytest.param(lambda: eva(**EVA02), False, 17, id="eva02-neighbours"),
    pytest.param(lambda: eva(**EVA02), True, 20, id="eva02-dynamo", marks=slow),
    pytest.param(lambda: eva(**DINOV3), False, 17, id="dinov3-halves", marks=slow),
    pytest.param(lambda: eva(**DINOV3), True, 23, id="dinov3-dynamo-23", marks=slow),
    pytest.param(lambda: eva(**MIXED), True, 20, id="mixed-per-head", marks=slow),
]


@pytest.mark.parametrize(("build", "dynamo", "opset"), MODELS)
def test_it_is_reduced_like_timms_own(exported, build, dynamo, opset):
    module = build()
    vit = same_reduction(exported(module, opset, dynamo), module, "tome:r=4")
    assert vit.positional


def test_tokens_that_are_dropped_take_their_positions_along(exported):
    module = eva(**EVA02, global_pool="token")
    same_reduction(exported(module, 17, False), module, "evit:keep=0.6@1")


def test_a_method_without_positions_is_refused_as_for_timms_own(exported):
    module = beit(use_rel_pos_bias=True)
    said = []
    for vit in (adapt(module), adapt(load(str(exported(module, 17, False))).module)):
        with pytest.raises(ScheduleError, match="attention reads positions") as caught:
            reduce(vit, parse_schedule("expedit:keep=0.5,until=2@1"))
        said.append(str(caught.value))
    assert said[0] == said[1]


class Masked(nn.Module):
    """A tiny ViT whose attention also adds what the image says."""

    def __init__(self, vit, bend):
        super().__init__()
        self.vit, self.bend = vit, bend
        for block in vit.blocks:
            block.attn.forward = lambda x, attn=block.attn, **_: self.attend(attn, x)

    def attend(self, attn, x):
        batch, count, width = x.shape
        q, k, v = attn.qkv(x).reshape(batch, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = self.bend(q, k, v, x)
        return attn.proj(attended.transpose(1, 2).reshape(batch, count, width))

    def forward(self, images):
        return self.vit(images)


def seen(q, k, v, x):
    """A bias of the tokens themselves."""
    return (q @ k.transpose(-2, -1) * 0.25 + x.mean(-1)[:, None, None]).softmax(-1) @ v


def bent(q, k, v, x):
    """Queries that are squared: no rotation."""
    turned = q * q.roll(1, dims=-1)
    return (turned @ k.transpose(-2, -1) * 0.25).softmax(-1) @ v


def hidden(q, k, v, x):
    """A boolean mask that no image changes."""
    open_ = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(3)
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=open_)


@pytest.mark.parametrize(
    ("bend", "opset", "dynamo", "says"),
    [
        (seen, 17, False, "a bias of positions that no image changes was expected"),
        (bent, 17, False, "something else lies between"),
        pytest.param(hidden, 23, True, "it has a mask inside", marks=slow),
    ],
)
def test_what_is_no_position_is_refused_by_name(exported, tiny_vit, bend, opset, dynamo, says):
    path = exported(Masked(tiny_vit(), bend), opset, dynamo)
    with pytest.raises(UnsupportedModel) as caught:
        adapt(load(str(path)).module)
    assert says in str(caught.value)
    assert "node " in str(caught.value)

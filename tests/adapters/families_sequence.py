"""Tiny random models of timm's families whose tokens stay one sequence, for docs/support.md."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}


def randomised(model: nn.Module) -> nn.Module:
    """Weights that hide nothing: gains in [0.2, 0.8], everything else random, position tables and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim <= 1 and ("gamma" in name or "norm" in name):
                parameter.uniform_(0.2, 0.8, generator=generator)
            elif parameter.ndim <= 1 or any(word in name for word in ("token", "pos_embed", "bias_table", "latent")):
                parameter.normal_(0, 0.5, generator=generator)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return model.eval()


def vit(block: str = "Block", **options) -> nn.Module:
    """A VisionTransformer of another kind of block."""
    from timm.models import vision_transformer

    return randomised(
        vision_transformer.VisionTransformer(**SIZES, block_fn=getattr(vision_transformer, block), **options)
    )


def eva(**options) -> nn.Module:
    """An Eva with average pooling, which is timm's default."""
    from timm.models.eva import Eva

    return randomised(Eva(**{**SIZES, **options}))


def dinov3() -> nn.Module:
    """Rotary positions alone, four registers, layer scale, the class token as output."""
    return eva(
        global_pool="token",
        num_classes=0,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_rotate_half=True,
        num_reg_tokens=4,
        init_values=0.5,
        use_fc_norm=False,
    )


def eva02() -> nn.Module:
    """Separate projections, gated feed-forward with a norm, rotary positions stretched from another grid."""
    return eva(
        qkv_fused=False, swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=True, ref_feat_shape=(2, 2), init_values=0.5
    )


def perception() -> nn.Module:
    """Perception Encoder: norm in front, rotary positions, attention pooling."""
    return eva(
        global_pool="map",
        attn_type="rope",
        use_pre_transformer_norm=True,
        use_rot_pos_emb=True,
        rope_grid_indexing="xy",
    )


def grouped() -> nn.Module:
    """Grouped queries, as in Sapiens2."""
    return eva(
        num_heads=4,
        num_kv_heads=(4, 2, 1),
        attn_type="rope",
        qkv_fused=False,
        qk_norm=True,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        init_values=0.5,
        attn_only_layer_scale=True,
    )


def mixed() -> nn.Module:
    """Rotation frequencies learned per block and head (ViT with RoPE-Mixed)."""
    return eva(global_pool="token", attn_type="rope", use_rot_pos_emb=True, rope_type="mixed", init_values=0.5)


def beit(**options) -> nn.Module:
    """BEiT: relative position bias per block, average pooling."""
    from timm.models.beit import Beit

    return randomised(Beit(**SIZES, use_abs_pos_emb=False, init_values=0.5, **options))


def relpos(**options) -> nn.Module:
    """ViT with a relative position network, average pooling."""
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos

    return randomised(VisionTransformerRelPos(**SIZES, **options))


def cait() -> nn.Module:
    """CaiT: talking heads, class attention."""
    from timm.models.cait import Cait

    return randomised(Cait(**SIZES))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "ViT (post-norm)": lambda: vit("ResPostBlock"),
    "ViT (parallel blocks, 'three things')": lambda: vit("ParallelThingsBlock", init_values=0.5),
    "ViT (parallel blocks, ViT-22B)": lambda: vit("ParallelScalingBlock", init_values=0.5),
    "EVA": lambda: eva(),
    "EVA-02": eva02,
    "DINOv3": dinov3,
    "Perception Encoder": perception,
    "ViT with learned rotary positions": mixed,
    "Sapiens2 (grouped queries)": grouped,
    "BEiT": lambda: beit(use_rel_pos_bias=True),
    "BEiT (shared bias, class token)": lambda: beit(use_shared_rel_pos_bias=True, global_pool="token"),
    "ViT with relative positions": relpos,
    "ViT with relative positions (class token)": lambda: relpos(
        class_token=True, global_pool="token", rel_pos_type="bias", shared_rel_pos=True
    ),
    "CaiT": cait,
}

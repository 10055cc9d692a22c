"""transformers' CLIP and SigLIP vision towers, and their image classifiers.

    class                          output, the default first          how it reads tokens
    CLIPVisionModel                last_hidden_state, pooler_output   all, without the final norm; class token
    CLIPVisionModelWithProjection  image_embeds, last_hidden_state    class token, projected; all
    CLIPForImageClassification     logits                             mean of the patches, without the final norm
    SiglipVisionModel              pooler_output, last_hidden_state   attention pooling; all (the default without head)
    SiglipForImageClassification   logits                             mean of the patches

SigLIP's attention pooling adds log(size) to its logits, so a merged patch counts as often as the patches it stands for.
The towers' fixed-size models only: SigLIP 2's NaFlex takes patches and masks instead of images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgevit.adapters.hf import (
    AllTokens,
    HfBlock,
    MeanTokens,
    OneTensor,
    PrefixTokens,
    Reader,
    check_attention,
    chosen,
    library,
    pair,
    unwrap,
)
from edgevit.adapters.known import check_children, check_eval, check_methods, check_part
from edgevit.stages import Stage, VitModel

CLASSES = {"clip": "CLIP", "siglip": "Siglip"}  # transformers' name of the model → prefix of its classes
KINDS = ("VisionModel", "VisionModelWithProjection", "ForImageClassification")
TOWER_CHILDREN = {"embeddings", "pre_layrnorm", "encoder", "post_layernorm", "head"}
HEAD_CHILDREN = {"vision_model", "visual_projection", "classifier"}
LAYER_CHILDREN = {"self_attn", "layer_norm1", "mlp", "layer_norm2"}
POOL_CHILDREN = {"attention", "layernorm", "mlp"}


def adapt(module: nn.Module) -> VitModel | None:
    """Take a vision tower of CLIP or SigLIP apart; None for anything else."""
    model, asked = unwrap(module)
    found = library(model)
    if found is None or found[0] not in CLASSES:
        return None
    source, prefix = found[1], CLASSES[found[0]]
    known = [getattr(source, prefix + kind) for kind in KINDS if hasattr(source, prefix + kind)]
    if not any(isinstance(model, cls) for cls in known):
        return None
    tower: Any = model if isinstance(model, known[0]) else model.vision_model
    _check(model, tower, known)
    blocks = []
    for index, layer in enumerate(tower.encoder.layers):
        where, attention = f"layers.{index}", layer.self_attn
        check_part(where, layer, LAYER_CHILDREN, getattr(source, f"{prefix}EncoderLayer"))
        check_attention(f"{where}.self_attn", attention, getattr(source, f"{prefix}Attention"), "out_proj")
        blocks.append(HfBlock((layer.layer_norm1, layer.layer_norm2), attention, attention.out_proj, layer.mlp))
    clip = prefix == "CLIP"
    pool = getattr(tower, "head", None)
    if pool is not None:
        check_part("head", pool, POOL_CHILDREN, source.SiglipMultiheadAttentionPoolingHead)
    output, pooling, head = chosen(model, asked, _clip(model, tower) if clip else _siglip(model, tower, pool))
    size, patch = pair(tower.embeddings.image_size), pair(tower.embeddings.patch_size)
    grid = size[0] // patch[0], size[1] // patch[1]
    return VitModel(
        module=OneTensor(model, output),
        family=f"transformers {prefix} vision tower",
        stem=nn.Sequential(tower.embeddings, tower.pre_layrnorm) if clip else tower.embeddings,
        stages=(Stage(tuple(blocks), int(clip), grid, restores=pooling == "none"),),
        head=head,
        class_token=clip,
        image_size=size,
        pooling=pooling,
    )


def _check(model: Any, tower: Any, known: list[type]) -> None:
    check_eval(model)
    for part in (model, tower):
        check_methods(part, ("forward",), *known)
    check_children(type(tower).__name__, tower, TOWER_CHILDREN)
    if model is not tower:
        check_children(type(model).__name__, model, HEAD_CHILDREN)


def _clip(model: Any, tower: Any) -> dict[str, Reader]:
    """CLIP norms the class token alone; its tokens leave the tower as the last layer made them."""
    tokens: Reader = "none", AllTokens(nn.Identity())
    if model is tower:
        return {
            "last_hidden_state": tokens,
            "pooler_output": ("token", PrefixTokens(tower.post_layernorm, nn.Identity())),
        }
    if hasattr(model, "visual_projection"):
        projected = PrefixTokens(tower.post_layernorm, model.visual_projection)
        return {"image_embeds": ("token", projected), "last_hidden_state": tokens}
    return {"logits": ("avg", MeanTokens(nn.Identity(), 1, model.classifier))}


def _siglip(model: Any, tower: Any, pool: Any) -> dict[str, Reader]:
    norm = tower.post_layernorm
    if model is not tower:
        return {"logits": ("avg", MeanTokens(norm, 0, model.classifier))}
    tokens: Reader = "none", AllTokens(norm)
    if pool is None:
        return {"last_hidden_state": tokens}
    return {"pooler_output": ("map", AttentionPool(norm, pool)), "last_hidden_state": tokens}


class AttentionPool(nn.Module):
    """SigLIP's head: one learned query attends to all tokens.

    h = attention(probe, x, x)        logits + log(size)
    y = h + mlp(layernorm(h))
    """

    def __init__(self, norm: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.pool: Any = pool

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, N, C]`, sizes `[B, N]` or None → `[B, C]`."""
        x, pool = self.norm(x), self.pool
        probe = pool.probe.expand(x.shape[0], -1, -1)
        bias = None if size is None else size.log()
        pooled = pool.attention(probe, x, x, key_padding_mask=bias, need_weights=False)[0]
        out: torch.Tensor = (pooled + pool.mlp(pool.layernorm(pooled)))[:, 0]
        return out

"""transformers' ViT, DeiT and DINOv2 (registers or not): encoders and image classifiers.

    class                                       output, the default first            tokens that are read
    ViTModel, DeiTModel, Dinov2Model, ...       last_hidden_state, pooler_output     all; the class token
    ...ForImageClassification                   logits                               class token (DINOv2: and the mean)
    DeiTForImageClassificationWithTeacher       logits                               class and distillation token

An encoder's default gives every token back, so only merging methods fit it. Another output: `OneTensor(model, name)`.
Layers, attention and children are checked by name: written for the layout of transformers 5 (q_proj, k_proj, v_proj).
"""

from __future__ import annotations

from types import ModuleType
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

CLASSES = {  # transformers' name of the model → prefix of its classes
    "vit": "ViT",
    "deit": "DeiT",
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
}
KINDS = ("Model", "ForImageClassification", "ForImageClassificationWithTeacher")
BASE_CHILDREN = {"embeddings", "layers", "encoder", "layernorm", "pooler"}
HEAD_CHILDREN = {"classifier", "cls_classifier", "distillation_classifier"}
VIT_CHILDREN = {"attention", "layernorm_before", "layernorm_after", "mlp", "dropout"}
DINO_CHILDREN = {"norm1", "attention", "layer_scale1", "drop_path", "norm2", "mlp", "layer_scale2"}


def adapt(module: nn.Module) -> VitModel | None:
    """Take a ViT, DeiT or DINOv2 of transformers apart; None for anything else."""
    model, asked = unwrap(module)
    found = library(model)
    if found is None or found[0] not in CLASSES:
        return None
    name, source = found
    known = [getattr(source, CLASSES[name] + kind) for kind in KINDS if hasattr(source, CLASSES[name] + kind)]
    if not any(isinstance(model, cls) for cls in known):
        return None
    base: Any = model if isinstance(model, known[0]) else model.base_model
    _check(model, base, known)
    layers = base.encoder.layer if "encoder" in dict(base.named_children()) else base.layers
    blocks = tuple(_block(f"layers.{index}", layer, source, CLASSES[name]) for index, layer in enumerate(layers))
    prefix = _prefix(base.embeddings)
    output, pooling, head = _head(model, base, asked, prefix)
    height, width = pair(base.embeddings.patch_embeddings.image_size)
    down, across = pair(base.embeddings.patch_embeddings.patch_size)
    return VitModel(
        module=OneTensor(model, output),
        family=f"transformers {CLASSES[name]}",
        stem=base.embeddings,
        stages=(Stage(blocks, prefix, (height // down, width // across), restores=pooling == "none"),),
        head=head,
        class_token=True,
        image_size=(height, width),
        pooling=pooling,
    )


def _check(model: Any, base: Any, known: list[type]) -> None:
    name = type(model).__name__
    check_eval(model)
    for part in (model, base):
        check_methods(part, ("forward",), *known)
    check_children(type(base).__name__, base, BASE_CHILDREN)
    if model is not base:
        check_children(name, model, HEAD_CHILDREN | {model.base_model_prefix})


def _prefix(embeddings: Any) -> int:
    """Class token, distillation token, registers."""
    registers = getattr(embeddings, "register_tokens", None)
    return 1 + hasattr(embeddings, "distillation_token") + (0 if registers is None else int(registers.shape[1]))


def _block(where: str, layer: Any, source: ModuleType, prefix: str) -> HfBlock:
    """One layer, after looking at what it holds."""
    dino = prefix.startswith("Dino")
    check_part(where, layer, DINO_CHILDREN if dino else VIT_CHILDREN, getattr(source, f"{prefix}Layer"))
    attention = layer.attention
    check_attention(f"{where}.attention", attention, getattr(source, f"{prefix}Attention"), "o_proj")
    if dino:
        scales = layer.layer_scale1, layer.layer_scale2
        return HfBlock((layer.norm1, layer.norm2), attention, attention.o_proj, layer.mlp, scales)
    return HfBlock((layer.layernorm_before, layer.layernorm_after), attention, attention.o_proj, layer.mlp)


def _head(model: Any, base: Any, asked: str | None, prefix: int) -> tuple[str, str, nn.Module]:
    """The output's name, how it pools, and the module that reads it."""
    norm = base.layernorm
    readers: dict[str, Reader]
    if model is base:
        readers = {"last_hidden_state": ("none", AllTokens(norm))}
        pooler = getattr(base, "pooler", None)
        if not hasattr(base, "pooler"):  # DINOv2: the class token itself
            readers["pooler_output"] = "token", PrefixTokens(norm, nn.Identity())
        elif pooler is not None:
            readers["pooler_output"] = "token", PrefixTokens(norm, Pooler(pooler))
    elif hasattr(model, "distillation_classifier"):
        readers = {"logits": ("token", PrefixTokens(norm, model.cls_classifier, model.distillation_classifier))}
    elif "Dinov2" in type(base).__name__:
        readers = {"logits": ("avg", MeanTokens(norm, prefix, model.classifier, beside=True))}
    else:
        readers = {"logits": ("token", PrefixTokens(norm, model.classifier))}
    return chosen(model, asked, readers)


class Pooler(nn.Module):
    """ViT's pooler, which reads the first of the tokens it is given."""

    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, first: torch.Tensor) -> torch.Tensor:
        """Class token `[B, C]` → `[B, C']`."""
        out: torch.Tensor = self.pooler(first.unsqueeze(1))
        return out

"""Tiny random models of transformers and torchvision, for docs/support.md and for the tests of their adapters."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

VIT = {
    "image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3,
    "intermediate_size": 96,
}  # fmt: skip
DINO = {key: value for key, value in VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
CLASSES = 7


def randomised(model: nn.Module) -> nn.Module:
    """Weights that hide nothing: matrices of spread 0.15, tokens of spread 0.5, vectors near 0.5."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.2, 0.8, generator=generator)
            else:
                tokens = "token" in name or "pos" in name or "probe" in name
                parameter.normal_(0, 0.5 if tokens else 0.15, generator=generator)
    return model.eval()


def hf(name: str, sizes: dict, head: str = "Model", classes: int = CLASSES, build: dict | None = None, **options):
    """A model of transformers: `name` is the prefix of its classes."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**sizes, **options}, num_labels=classes)
    return randomised(getattr(transformers, name + head)(config, **(build or {})))


def tower(name: str, head: str = "VisionModel", **options):
    """A vision tower, or a classifier on one."""
    import transformers

    config = getattr(transformers, f"{name}VisionConfig")(**{**VIT, **options})
    if head == "ForImageClassification":
        config = getattr(transformers, f"{name}Config")(vision_config=config.to_dict(), num_labels=CLASSES)
    return randomised(getattr(transformers, name + head)(config))


def torchvision_vit(**options):
    """torchvision's class at a small size; its head and class token start at zero, so they are filled too."""
    from torchvision.models.vision_transformer import VisionTransformer

    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 96}
    return randomised(VisionTransformer(**{**sizes, "num_classes": CLASSES, **options}))


FAMILIES = {
    "transformers ViT (classifier)": partial(hf, "ViT", VIT, "ForImageClassification"),
    "transformers ViT (token outputs)": partial(hf, "ViT", VIT),
    "transformers DeiT distilled": partial(hf, "DeiT", VIT, "ForImageClassificationWithTeacher"),
    "transformers DINOv2 (classifier)": partial(hf, "Dinov2", DINO, "ForImageClassification"),
    "transformers DINOv2 (token outputs)": partial(hf, "Dinov2", DINO),
    "transformers DINOv2 with registers (token outputs)": partial(hf, "Dinov2WithRegisters", DINO),
    "transformers CLIP vision (image embedding)": partial(tower, "CLIP", "VisionModelWithProjection"),
    "transformers CLIP vision (token outputs)": partial(tower, "CLIP"),
    "transformers SigLIP vision (attention pooling)": partial(tower, "Siglip"),
    "transformers SigLIP (classifier)": partial(tower, "Siglip", "ForImageClassification"),
    "torchvision VisionTransformer": torchvision_vit,
}

VARIANTS = {  # more of what the adapters run, for their tests
    "ViT without pooler": partial(hf, "ViT", VIT, build={"add_pooling_layer": False}),
    "ViT without qkv bias": partial(hf, "ViT", VIT, "ForImageClassification", qkv_bias=False),
    "ViT, eager attention": partial(hf, "ViT", VIT, "ForImageClassification", attn_implementation="eager"),
    "ViT, not square": partial(hf, "ViT", VIT, "ForImageClassification", image_size=[32, 48]),
    "ViT, patches not square": partial(hf, "ViT", VIT, "ForImageClassification", patch_size=[8, 4]),
    "ViT without classes": partial(hf, "ViT", VIT, "ForImageClassification", classes=0),
    "ViT that returns tuples": partial(hf, "ViT", VIT, return_dict=False),
    "DeiT": partial(hf, "DeiT", VIT),
    "DeiT classifier": partial(hf, "DeiT", VIT, "ForImageClassification"),
    "DINOv2, SwiGLU": partial(hf, "Dinov2", DINO, "ForImageClassification", use_swiglu_ffn=True),
    "DINOv2, drop path": partial(hf, "Dinov2", DINO, drop_path_rate=0.5),
    "DINOv2 registers classifier": partial(hf, "Dinov2WithRegisters", DINO, "ForImageClassification"),
    "DINOv2 two registers": partial(hf, "Dinov2WithRegisters", DINO, num_register_tokens=2),
    "CLIP classifier": partial(tower, "CLIP", "ForImageClassification"),
    "CLIP, border that no patch covers": partial(tower, "CLIP", image_size=35),
    "SigLIP without head": partial(tower, "Siglip", vision_use_head=False),
    "torchvision, two-layer head": partial(torchvision_vit, representation_size=24),
}

"""Model families that edgevit can take apart. The only code that names attributes of somebody else's model.

ADAPTERS is the whole list: family → "module:function". An adapter is one file, one line here, one test. Its function
takes a module and returns a VitModel, None when the module is not of its family, or raises UnsupportedModel with the
reason when it is but holds something the adapter does not run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgevit.adapters.refused import refused
from edgevit.distance import relative_error
from edgevit.errors import UnsupportedModel
from edgevit.names import named

if TYPE_CHECKING:
    from torch import nn

    from edgevit.stages import VitModel

ADAPTERS = {
    "timm VisionTransformer (ViT, DeiT, DeiT distilled, DeiT-III, DINOv2, AugReg)": "edgevit.adapters.timm_vit:adapt",
    "torchvision VisionTransformer": "edgevit.adapters.tv_vit:adapt",
    "transformers ViT, DeiT, DINOv2 (registers or not)": "edgevit.adapters.hf_vit:adapt",
    "transformers CLIP and SigLIP vision towers": "edgevit.adapters.hf_clip:adapt",
    "timm Eva (EVA, EVA-02, DINOv3, Perception Encoder, ViT with rotary positions)": "edgevit.adapters.timm_eva:adapt",
    "timm Beit (BEiT, BEiT v2)": "edgevit.adapters.timm_beit:adapt",
    "timm VisionTransformerRelPos": "edgevit.adapters.timm_relpos:adapt",
    "timm Cait": "edgevit.adapters.timm_cait:adapt",
    "timm SwinTransformer, SwinTransformerV2": "edgevit.adapters.timm_swin:adapt",
    "timm Hiera": "edgevit.adapters.timm_hiera:adapt",
    "timm PoolingVisionTransformer (PiT)": "edgevit.adapters.timm_pit:adapt",
    "timm Levit": "edgevit.adapters.timm_levit:adapt",
    "timm EfficientFormer": "edgevit.adapters.timm_efficientformer:adapt",
    "timm MobileViT": "edgevit.adapters.timm_mobilevit:adapt",
    "trained with their reduction: DynamicViT, SiT, STViT-R, LookupViT, DTEM, DToP": "edgevit.adapters.trained:adapt",
    "plain ViT in an ONNX file": "edgevit.adapters.foreign:adapt",
}

IDENTITY_TOLERANCE = 1e-5  # relative to the largest output; float32 reassociation stays below 1e-6


def adapt(module: nn.Module) -> VitModel:
    """Take a model apart, prove that the parts give the same outputs, and return them.

    Raises UnsupportedModel: no adapter knows it, or the proof fails.
    """
    for path in ADAPTERS.values():
        attempt: Callable[[nn.Module], VitModel | None] = named(path)
        vit = attempt(module)
        if vit is not None:
            prove_identity(vit)
            return vit
    reason = refused(module)
    if reason:
        raise UnsupportedModel(reason)
    name = type(getattr(module, "wrapped", module)).__name__
    raise UnsupportedModel(
        f"{name} has no adapter, so its tokens cannot be reduced; it exports dense (drop --reduce). "
        f"Families with an adapter: {'; '.join(ADAPTERS)}"
    )


def prove_identity(vit: VitModel) -> None:
    """Compare parts and whole on one random image: a newer model library may have changed what a block does."""
    import torch

    from edgevit.reduced_vit import dense_parts

    images = torch.rand(1, 3, *vit.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected, got = vit.module(images), dense_parts(vit)(images)
    error = relative_error(got, expected)
    if not error <= IDENTITY_TOLERANCE:
        raise UnsupportedModel(
            f"{type(vit.module).__name__}: the adapter's parts differ from the model by {error:.1e} (limit "
            f"{IDENTITY_TOLERANCE:g}); this version of its library does something the adapter does not run"
        )

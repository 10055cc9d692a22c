"""The demo model: a small Vision Transformer for 96x96 scenes with one handwritten digit.

The architecture is timm's plain ``VisionTransformer`` (Dosovitskiy et al., "An Image is Worth 16x16 Words",
ICLR 2021), narrow and with small patches, so that it has many tokens (145) for few parameters (0.93 M).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

IMAGE_SIZE = 96
PATCH_SIZE = 8
CLASSES: tuple[str, ...] = tuple("0123456789")
PREPROCESS: dict[str, Any] = {
    "size": [IMAGE_SIZE, IMAGE_SIZE],
    "resize": "squash",
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
WEIGHTS = Path(__file__).with_name("weights.safetensors")


def build() -> VisionTransformer:
    """Builds the demo model with random weights.

    Returns:
        A ViT from normalised images ``[B, 3, 96, 96]`` to logits ``[B, 10]``, with 144 patch tokens and one
        class token.
    """
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        embed_dim=96,
        depth=8,
        num_heads=3,
        num_classes=len(CLASSES),
    )


def load() -> nn.Module:
    """Builds the demo model and fills in the trained weights that lie beside this file.

    Returns:
        The model in evaluation mode with float32 weights: images ``[B, 3, 96, 96]`` to logits ``[B, 10]``.

    Raises:
        FileNotFoundError: The weights file is missing.
    """
    from safetensors.torch import load_file

    if not WEIGHTS.is_file():
        raise FileNotFoundError(f"no demo weights at {WEIGHTS}: make them with python -m edgevit.demo.train")
    model: nn.Module = build()
    # Stored as float16 to halve the file; every tensor is a parameter, so all of them go back to float32.
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}, strict=True)
    model.eval()
    return model

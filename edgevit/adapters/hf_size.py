"""transformers' models at another image size: position embeddings resampled once, not in every inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgevit.adapters.hf import pair
from edgevit.errors import UnsupportedModel

ANY_SIZE = ("Dinov2Embeddings", "Dinov2WithRegistersEmbeddings")  # their forward resamples without being asked
ANY_SHAPE = ("ViTEmbeddings", "DeiTEmbeddings")


def fit_image_size(model: nn.Module, size: tuple[int, int], asked: bool) -> None:
    """Give a model's position embeddings the grid of images of `size` (height, width), as the model itself resamples.

    A model without resampling, or already of this size, stays as it is. asked: the user named the size; else only
    DINOv2 is resampled, whose forward does so too. Raises UnsupportedModel.
    """
    found = [module for module in model.modules() if hasattr(module, "interpolate_pos_encoding")]
    if len(found) != 1:
        return
    embeddings: Any = found[0]
    patches = getattr(embeddings, "patch_embeddings", embeddings)
    before = pair(patches.image_size)
    if before == size:
        return
    kind = type(embeddings).__name__
    if not asked and kind not in ANY_SIZE:
        raise UnsupportedModel(
            f"its preprocessing makes images of {size[0]}x{size[1]}, the model takes {before[0]}x{before[1]}; pass "
            "--input-size or --preprocess"
        )
    if len(set(size)) > 1 and kind not in ANY_SHAPE:
        raise UnsupportedModel(f"{type(model).__name__} takes square images, not {size[0]}x{size[1]}")
    down, across = pair(patches.patch_size)
    if min(size[0] // down, size[1] // across) < 1:
        raise UnsupportedModel(f"images of {size[0]}x{size[1]} hold no patch of {down}x{across}")
    if before[0] != before[1] or down != across:
        raise UnsupportedModel(
            f"{type(model).__name__} for {before} images cannot be resampled: its grid is not square"
        )
    _replace(embeddings, patches, size, (size[0] // down) * (size[1] // across))


def _replace(embeddings: Any, patches: Any, size: tuple[int, int], count: int) -> None:
    """Put the resampled table in the place of the old one."""
    separate = isinstance(getattr(embeddings, "position_embedding", None), nn.Embedding)  # CLIP, SigLIP
    table = embeddings.position_embedding.weight if separate else embeddings.position_embeddings[0]
    prefix = table.shape[0] - patches.num_patches
    with torch.no_grad():
        stand_in = table.new_zeros((1, prefix + count, table.shape[1]))
        fitted = embeddings.interpolate_pos_encoding(stand_in, *size)
    if separate:
        embeddings.position_embedding = nn.Embedding(prefix + count, table.shape[1], _weight=fitted[0])
        embeddings.position_ids = torch.arange(prefix + count).expand((1, -1))
        embeddings.num_positions = prefix + count
    else:
        embeddings.position_embeddings = nn.Parameter(fitted)
    patches.num_patches = count
    patches.image_size = size[0] if separate else size
    if not separate and hasattr(embeddings, "image_size"):
        embeddings.image_size = size

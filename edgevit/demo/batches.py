"""The training data of the demo model: fresh scenes for each epoch, as tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from edgevit.demo.model import IMAGE_SIZE, PATCH_SIZE, PREPROCESS
from edgevit.demo.scenes import digits, render

GRID = IMAGE_SIZE // PATCH_SIZE
# Side of a window in patches: the least that can cover any digit's box (see scenes.MAX_BOX).
WINDOW = 8
SCENES_PER_DIGIT = 2


@dataclass
class Epoch:
    """The fresh scenes of one epoch.

    Attributes:
        images: uint8 ``[N, 96, 96, 3]``.
        labels: int64 ``[N]``.
        corners: First row and column of patches of the window around each digit, int64 ``[N, 2]``.
        strokes: Opacity of the digit in each patch, 0..1, averaged over 2x2 pixels, float32 ``[N, 144, 16]``.
    """

    images: torch.Tensor
    labels: torch.Tensor
    corners: torch.Tensor
    strokes: torch.Tensor


def _corner(start: int, side: int, rng: np.random.Generator) -> int:
    """Picks the first patch of a window (along one axis) that covers pixels ``start .. start + side``."""
    low = max(0, math.ceil((start + side) / PATCH_SIZE) - WINDOW)
    high = min(start // PATCH_SIZE, GRID - WINDOW)
    return int(rng.integers(low, high + 1))


def make_epoch(seed: int, epoch: int) -> Epoch:
    """Renders fresh scenes of the training digits, in random order."""
    rng = np.random.default_rng([seed, epoch])
    images, labels = digits("train")
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(SCENES_PER_DIGIT)])
    scenes = np.empty((len(order), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    corners = np.empty((len(order), 2), dtype=np.int64)
    opacity = np.zeros((len(order), IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for place, index in enumerate(order):
        scenes[place], (left, top, side), mask = render(images[index], rng)
        opacity[place, top : top + side, left : left + side] = mask
        corners[place] = _corner(top, side, rng), _corner(left, side, rng)
    cells = opacity.reshape(-1, GRID, PATCH_SIZE // 2, 2, GRID, PATCH_SIZE // 2, 2).mean(axis=(3, 6))
    strokes = cells.transpose(0, 1, 3, 2, 4).reshape(len(order), GRID * GRID, -1)
    return Epoch(
        torch.from_numpy(scenes),
        torch.from_numpy(labels[order]).long(),
        torch.from_numpy(corners),
        torch.from_numpy(strokes),
    )


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Turns uint8 ``[B, H, W, 3]`` into normalised float32 ``[B, 3, H, W]``."""
    mean = torch.tensor(PREPROCESS["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(PREPROCESS["std"]).view(1, 3, 1, 1)
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std

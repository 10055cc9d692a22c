"""Labelled RGB scenes for the demo: one handwritten digit, tinted, on a smooth background.

The digits are scikit-learn's ``load_digits`` (1797 grey 8x8 images, the test part of the UCI data set
"Optical Recognition of Handwritten Digits", Alpaydin and Kaynak 1998). The box of a digit is about a
quarter of its scene, so most tokens of a ViT are background and token reduction has something to remove.

The *digits* are split, not only the scenes: no digit seen in training is used for calibration or evaluation.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

CANVAS = 96
# A box of at most 57 pixels lies inside eight 8-pixel patches wherever it starts (57 + 7 = 64).
MIN_BOX, MAX_BOX = 42, 57
SPLITS: dict[str, range] = {
    "train": range(1200),
    "calib": range(1200, 1296),
    "eval": range(1297, 1797),
}
SEEDS: dict[str, int] = {"calib": 101, "eval": 202}


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the digits of one split.

    Args:
        split: ``train``, ``calib`` or ``eval``.

    Returns:
        Images ``[N, 8, 8]`` with values 0..16, and labels ``[N]``.

    Raises:
        ValueError: There is no such split.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the demo images need scikit-learn: pip install scikit-learn") from error
    data = load_digits()
    indices = np.asarray(SPLITS[split])
    return data.images[indices], data.target[indices]


def _background(rng: np.random.Generator) -> np.ndarray:
    """Returns a dark, smooth background with slight noise, float32 ``[96, 96, 3]`` in 0..255."""
    base = rng.uniform(20, 90, size=3)
    coarse = np.clip(base + rng.uniform(-25, 25, size=(3, 3, 3)), 0, 255).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
    noise = rng.integers(-6, 7, size=(CANVAS, CANVAS, 3), dtype=np.int8)
    return np.asarray(smooth, dtype=np.float32) + noise


def _mask(digit: np.ndarray, box: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a digit, slightly turned, slanted and stretched, as an opacity mask.

    Args:
        digit: ``[8, 8]`` with values 0..16.
        box: Side of the result in pixels.
        rng: Source of the distortion.

    Returns:
        Opacity 0..1, float32 ``[box, box]``.
    """
    angle = math.radians(rng.uniform(-12, 12))
    slant = rng.uniform(-0.15, 0.15)
    width, height = rng.uniform(0.85, 1.0, size=2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = turn @ np.array([[width, slant], [0.0, height]])
    # Pillow maps output pixels to input pixels, so the distortion is inverted; 8 / box is the upsampling. The
    # two blank pixels around the digit give the bicubic filter a soft edge instead of a hard cut.
    inverse = np.linalg.inv(forward) * (8 / box)
    source = np.pad(np.clip(digit * (255 / 16), 0, 255).astype(np.uint8), 2)
    offset = np.array([6.0, 6.0]) - inverse @ np.array([box / 2, box / 2])
    coefficients = (*inverse[0].tolist(), float(offset[0]), *inverse[1].tolist(), float(offset[1]))
    image = Image.fromarray(source).transform(
        (box, box), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    return np.asarray(image, dtype=np.float32) / 255


def render(digit: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int], np.ndarray]:
    """Renders one scene and says where its digit is.

    Args:
        digit: ``[8, 8]`` with values 0..16.
        rng: Source of everything random in the scene; the same state gives the same scene.

    Returns:
        The scene, uint8 ``[96, 96, 3]``; the digit's box as (left, top, side) in pixels; and the opacity of
        the digit, 0..1, float32 ``[side, side]``.
    """
    canvas = _background(rng)
    side = int(rng.integers(MIN_BOX, MAX_BOX + 1))
    left, top = (int(value) for value in rng.integers(0, CANVAS - side + 1, size=2))
    # At least one channel is bright, so a digit always stands out from the dark background.
    tint = rng.uniform(90, 255, size=3)
    tint[rng.integers(3)] = rng.uniform(190, 255)
    opacity = _mask(digit, side, rng)
    patch = canvas[top : top + side, left : left + side]
    patch += opacity[:, :, None] * (tint.astype(np.float32) - patch)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), (left, top, side), opacity


def scene(digit: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Makes one RGB scene of 96x96 pixels from a digit.

    Args:
        digit: ``[8, 8]`` with values 0..16.
        rng: Source of everything random in the scene; the same state gives the same scene.

    Returns:
        The scene.
    """
    return Image.fromarray(render(digit, rng)[0])


def labelled_scenes(split: str) -> Iterator[tuple[Image.Image, int]]:
    """Yields the fixed scenes of a split, one for each of its digits.

    Args:
        split: ``calib`` (96 scenes) or ``eval`` (500 scenes).

    Yields:
        Scene and label, always the same ones in the same order.

    Raises:
        ValueError: The split has no fixed scenes.
    """
    if split not in SEEDS:
        raise ValueError(f"no fixed scenes for split {split!r}: choose one of {', '.join(SEEDS)}")
    images, labels = digits(split)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        # A generator for each scene keeps a scene the same however many come before it.
        yield scene(image, np.random.default_rng([SEEDS[split], index])), int(label)


def write_images(folder: Path) -> tuple[Path, Path]:
    """Writes the calibration and evaluation scenes as PNG files with a CSV for each.

    Args:
        folder: Where to write; made if missing. The CSV columns are ``file`` (relative to the folder) and
            ``label``.

    Returns:
        Paths of ``calib.csv`` and ``eval.csv``.
    """
    folder = Path(folder)
    written: list[Path] = []
    for split in ("calib", "eval"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        table = folder / f"{split}.csv"
        with table.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("file", "label"))
            for index, (image, label) in enumerate(labelled_scenes(split)):
                name = f"{split}/{index:04d}.png"
                image.save(folder / name)
                writer.writerow((name, label))
        written.append(table)
    return written[0], written[1]

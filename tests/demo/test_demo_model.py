"""Tests of the demo model, its weights and its scenes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgevit.demo
from edgevit.demo import model as demo_model
from edgevit.demo import scenes

ROOT = Path(edgevit.demo.__file__).parents[2]


@pytest.fixture(scope="module")
def loaded():
    """The demo model with its trained weights."""
    return edgevit.demo.load()


def test_import_is_light():
    """Importing the package loads no heavy library."""
    code = "import sys, edgevit.demo; print(sorted({'torch', 'timm', 'sklearn'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_weights_file(loaded):
    """The weights fit the architecture exactly, stay small and say where they come from."""
    from safetensors import safe_open

    assert demo_model.WEIGHTS.stat().st_size <= 4_000_000
    with safe_open(demo_model.WEIGHTS, framework="pt") as file:
        assert set(file.keys()) == set(demo_model.build().state_dict())
        assert {"arch", "seed", "epochs", "torch", "accuracy"} <= set(file.metadata())
        assert file.metadata()["arch"] == "demo"
    assert not loaded.training
    assert {str(parameter.dtype) for parameter in loaded.parameters()} == {"torch.float32"}


def test_shapes(loaded):
    """The model has 145 tokens and as many outputs as there are classes."""
    import torch

    assert loaded.pos_embed.shape == (1, 145, 96)
    with torch.inference_mode():
        assert loaded(torch.zeros(2, 3, 96, 96)).shape == (2, len(edgevit.demo.CLASSES))


def test_missing_weights(monkeypatch, tmp_path):
    """A missing weights file gives one line that says how to make it."""
    monkeypatch.setattr(demo_model, "WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="make them with python"):
        demo_model.load()


def test_splits_are_disjoint():
    """No digit is in two splits, and the splits have the promised sizes."""
    indices = [index for split in scenes.SPLITS.values() for index in split]
    assert len(indices) == len(set(indices))
    assert {name: len(split) for name, split in scenes.SPLITS.items()} == {
        "train": 1200,
        "calib": 96,
        "eval": 500,
    }


@pytest.mark.parametrize("function", [scenes.digits, lambda split: next(scenes.labelled_scenes(split))])
def test_unknown_split(function):
    """An unknown split is refused with the choices."""
    with pytest.raises(ValueError, match="calib, eval"):
        function("test")


def test_scene_is_deterministic():
    """The same generator state gives the same pixels, another state gives others."""
    digit = scenes.digits("train")[0][0]
    first, again, other = (scenes.scene(digit, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.size == (96, 96)
    assert first.mode == "RGB"
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_scene_is_mostly_background():
    """The digit stays in its box, and its box is well under half of the scene."""
    digit = scenes.digits("train")[0][0]
    for seed in range(20):
        image, (left, top, side), _ = scenes.render(digit, np.random.default_rng(seed))
        blank, box, _ = scenes.render(np.zeros((8, 8)), np.random.default_rng(seed))
        rows, columns = np.nonzero((image != blank).any(axis=2))
        assert box == (left, top, side)
        assert left <= columns.min() <= columns.max() < left + side <= scenes.CANVAS
        assert top <= rows.min() <= rows.max() < top + side <= scenes.CANVAS
        assert side * side < 0.4 * scenes.CANVAS**2


def test_write_images(tmp_path):
    """Two runs write the same bytes, and the CSV rows name images that exist."""
    first = edgevit.demo.write_images(tmp_path / "a")
    again = edgevit.demo.write_images(tmp_path / "b")
    for table, other, count in zip(first, again, (96, 500), strict=True):
        assert table.read_bytes() == other.read_bytes()
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == count
        assert {row["label"] for row in rows} == set(edgevit.demo.CLASSES)
        for row in rows:
            assert (table.parent / row["file"]).read_bytes() == (other.parent / row["file"]).read_bytes()
        with Image.open(table.parent / rows[0]["file"]) as image:
            assert (image.size, image.mode) == ((96, 96), "RGB")


def test_window_of_training_covers_the_digit():
    """The window that the first training stage sees contains the whole box of the digit."""
    from edgevit.demo import batches

    rng = np.random.default_rng(0)
    for side in range(scenes.MIN_BOX, scenes.MAX_BOX + 1):
        for start in range(scenes.CANVAS - side + 1):
            corner = batches._corner(start, side, rng)
            assert 0 <= corner <= batches.GRID - batches.WINDOW
            assert corner * 8 <= start
            assert start + side <= (corner + batches.WINDOW) * 8


def test_window_of_all_tokens_is_the_model(loaded, monkeypatch):
    """A window as large as the scene gives what the model itself gives."""
    import torch

    from edgevit.demo import train

    monkeypatch.setattr(train, "WINDOW", train.GRID)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        places = train.window_places(torch.zeros(2, 2, dtype=torch.int64))
        _, tokens = train.forward_window(loaded, images, places)
        torch.testing.assert_close(loaded.head(tokens[:, 0]), loaded(images), rtol=1e-4, atol=1e-4)


def test_accuracy(loaded):
    """The stored weights recognise the evaluation digits.

    The training log says 97.4 % on all 500 scenes; the first 100 were all right when the weights were made.
    Another version of torch or Pillow may turn a doubtful scene, hardly five of them.
    """
    from edgevit.demo import train

    hits, total = train.evaluate(loaded, count=100)
    assert total == 100
    assert hits >= 95

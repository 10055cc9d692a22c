"""A study that takes seconds: a tiny ViT, images that it labelled itself, the fake target and the fake meter."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from edgevit.tune.goal import Goal
from edgevit.tune.settings import TuneSettings
from tests.conftest import build_tiny_vit, write_csv

EVAL, CALIB = 64, 16


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """Folder with model.pt, pre.json, calib.csv, eval.csv; the dense float model is always right."""
    folder = tmp_path_factory.mktemp("tune")
    model = build_tiny_vit(depth=4)
    torch.save(model, folder / "model.pt")
    pre = {"size": [32, 32], "resize": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "pre.json").write_text(json.dumps(pre))
    draw = np.random.default_rng(0)
    files, labels = [], []
    for index in range(EVAL + CALIB):
        pixels = draw.integers(0, 256, (4, 4, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        files.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(files[-1])
        image = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
        with torch.no_grad():
            labels.append(int(model(image).argmax()))
    write_csv(folder / "eval.csv", files[:EVAL], labels[:EVAL])
    write_csv(folder / "calib.csv", files[EVAL:], labels[EVAL:])
    return folder


@pytest.fixture
def asked(material, tmp_path):
    """Factory: settings of the tiny study, with others where given."""

    def make(**others):
        fields = {
            "model": str(material / "model.pt"),
            "target": "fake",
            "device": "fake",
            "calib": material / "calib.csv",
            "eval": material / "eval.csv",
            "preprocess": material / "pre.json",
            "trust_pickle": True,
            "goal": Goal("max-drop", 40.0),
            "trials": 7,
            "out": tmp_path / "study",
        }
        return TuneSettings(**{**fields, **others})

    return make


@pytest.fixture
def words(material):
    """The command line of the tiny study, without its goal."""
    return (
        "tune", material / "model.pt", "--trust-pickle", "--preprocess", material / "pre.json", "--target", "fake",
        "--device", "fake", "--calib", material / "calib.csv", "--eval", material / "eval.csv",
    )  # fmt: skip

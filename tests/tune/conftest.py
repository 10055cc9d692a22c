"""A study that takes seconds: a tiny ViT, images that it labelled itself, the fake target and the fake meter."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgevit.bundle import Bundle
from edgevit.hashes import sha256_file
from edgevit.runtimes.fake import Fake, FakeSession
from edgevit.tune.goal import Goal
from edgevit.tune.settings import TuneSettings
from edgevit.tune.workshop import Workshop
from tests.conftest import build_tiny_vit, write_csv

EVAL, CALIB = 64, 16


@pytest.fixture(scope="module")
def quick():
    """The target has a second float precision instead of int8, which takes ten seconds an engine; the same point is
    built and opened once for all studies of a module.
    """
    policy = dataclasses.replace(Fake.policy, precisions=("fp32", "bf16"), tolerance={"fp32": 1e-5, "bf16": 1e-5})
    build, built, opened = Workshop.build, {}, {}

    def once(self, point, name):
        if str(point) not in built:
            built[str(point)] = build(self, point, name).folder.rename(folder / str(len(built)))
        target = self.settings.out / "bundles" / name
        shutil.copytree(built[str(point)], target, dirs_exist_ok=True)
        return Bundle.load(target)

    def open_once(self, engine, threads=None):
        key = sha256_file(engine.folder / engine.entry)
        if key not in opened:
            opened[key] = FakeSession(engine)
        return opened[key]

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        patch.setattr(Fake, "policy", policy)
        patch.setattr(Fake, "open", open_once)
        patch.setattr(Workshop, "build", once)
        yield


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """What `write_material` leaves."""
    return write_material(tmp_path_factory.mktemp("tune"))


def write_material(folder):
    """model.pt, pre.json, calib.csv, eval.csv; the dense float model is always right."""
    model = build_tiny_vit(depth=3)
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


def settings(material, out, **others):
    """Settings of the tiny study, with others where given."""
    fields = {
        "model": str(material / "model.pt"),
        "target": "fake",
        "device": "fake",
        "calib": material / "calib.csv",
        "eval": material / "eval.csv",
        "preprocess": material / "pre.json",
        "trust_pickle": True,
        "goal": Goal("max-drop", 40.0),
        "trials": 4,
        "out": out,
    }
    return TuneSettings(**{**fields, **others})


@pytest.fixture
def asked(material, tmp_path):
    """Factory: settings of a study in an empty folder."""
    return lambda **others: settings(material, tmp_path / "study", **others)


@pytest.fixture
def words(material):
    """The command line of the tiny study, without its goal."""
    return (
        "tune", material / "model.pt", "--trust-pickle", "--preprocess", material / "pre.json", "--target", "fake",
        "--device", "fake", "--calib", material / "calib.csv", "--eval", material / "eval.csv",
    )  # fmt: skip

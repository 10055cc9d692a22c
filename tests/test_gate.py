"""Gates on int8: layers that 8 bits ruin go back to float, those alone; what cannot be mended fails with the table."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.conftest import write_csv

HOSTILE = ("first", "second")


class Spread(nn.Module):
    """images `[1, 3, 16, 16]` → 5 classes. What `first` and `second` read spans six decades between tokens, and a norm
    behind each gives all tokens the same weight: one scale for all rounds most of them to nothing.
    """

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.first, self.second, self.middle = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(16, eps=1e-12) for _ in range(3))
        self.head = nn.Linear(16 * 16, 5)
        self.register_buffer("spread", torch.logspace(-3, 3, 16)[:, None])

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = self.norms[0](self.first(x * self.spread))
        x = self.norms[1](self.middle(x))
        x = self.norms[2](self.second(x * self.spread))
        return self.head(x.flatten(1))


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """The model as a pickled module, its preprocessing, and images labelled by the model itself."""
    folder = tmp_path_factory.mktemp("spread")
    torch.manual_seed(0)
    model = Spread().eval()
    generator = np.random.default_rng(0)
    files, labels = [], []
    for index in range(48):
        pixels = generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        x = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
        files.append(folder / f"{index}.png")
        labels.append(int(model(x).argmax()))
    write_csv(folder / "data.csv", files, labels)
    torch.save(model, folder / "model.pt")  # a program file would not keep the layers' names
    (folder / "pre.json").write_text(
        json.dumps({"size": [16, 16], "resize": "squash", "mean": [0.5] * 3, "std": [0.5] * 3})
    )
    return folder


@pytest.fixture
def export(cli, spread):
    pytest.importorskip("onnxruntime")

    def run(*more):
        data = spread / "data.csv"
        return cli(
            "export", spread / "model.pt", "--trust-pickle", "--preprocess", spread / "pre.json", "--target", "ort",
            "--int8", "--calib", data, "--eval", data, "-o", "out", *more,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_the_layers_that_8_bits_ruin_go_back_to_float_and_are_listed(export, tmp_path):
    result = export("--max-drop", "5", "--json")
    assert result.code == 0, result.err
    given_back = {kept["layer"] for kept in result.json["kept_float"] if "--max-drop" in kept["reason"]}
    assert given_back == set(HOSTILE)
    trials = result.json["gate"]["trials"]
    assert trials[0]["drop"] > 5  # nothing given back: the gate did not hold
    assert result.json["gate"]["drop"] <= 5
    assert json.loads((tmp_path / "out" / "report.json").read_text())["gate"] == result.json["gate"]


@pytest.mark.slow
def test_a_gate_that_cannot_hold_ends_in_the_table_of_trials(export, tmp_path, monkeypatch):
    monkeypatch.setattr("edgevit.gate.MOST", 0.2)  # the first of the two alone is more
    result = export("--max-drop", "5")
    assert result.code == 3
    assert "accuracy drops" in result.err
    assert "no bundle was written" in result.err
    assert "kept in float" in result.err
    assert not (tmp_path / "out").exists()


def timed(monkeypatch, speedup):
    """Engines that are `speedup(bundle, against)` times as fast as what they stand beside; nothing is measured."""

    def time(self, bundle, against, rounds=None):
        ratio = speedup(bundle, against)
        return {"ratio": ratio, "ci95": [ratio - 0.1, ratio + 0.1]}

    monkeypatch.setattr("edgevit.gate._Trials.time", time)


@pytest.mark.slow
def test_int8_that_is_slower_ends_in_the_table_of_regions(export, tmp_path, monkeypatch):
    timed(monkeypatch, lambda bundle, against: 0.8)
    result = export("--max-drop", "100", "--min-speedup", "1.1")
    assert result.code == 3
    assert "speedup is 0.80, --min-speedup asks 1.1" in result.err
    assert "over int8" in result.err  # every region that was tried in float
    assert "region" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_region_that_int8_made_no_faster_goes_back_to_float(export, monkeypatch):
    def fast_without_the_stem(bundle, against):
        return 1.3 if any(kept["layer"] == "embed" for kept in bundle.manifest["kept_float"]) else 0.8

    timed(monkeypatch, fast_without_the_stem)
    result = export("--max-drop", "100", "--min-speedup", "1.1", "--json")
    assert result.code == 0, result.err
    given_back = {kept["layer"]: kept["reason"] for kept in result.json["kept_float"] if "for speed" in kept["reason"]}
    assert set(given_back) == {"embed"}
    assert "1.30 times as fast" in given_back["embed"]
    assert result.json["gate"]["speedup"]["ratio"] == 1.3

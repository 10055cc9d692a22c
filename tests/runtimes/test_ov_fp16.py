"""fp16 for OpenVINO where this CPU has no float16: what the file holds, what ran here, and who refuses to time it."""

import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pytest
import torch

from edgevit.bundle import Bundle
from edgevit.errors import MeasureError
from edgevit.measure import job
from edgevit.runtimes import ov, runtime
from edgevit.runtimes.base import seen
from edgevit.tune.space import space

pytest.importorskip("openvino")
TARGET = runtime("openvino")
OLD, NEW = {"FP32", "INT8"}, {"FP32", "INT8", "FP16"}


@pytest.fixture
def old(monkeypatch):
    """A CPU without float16, whatever this one has."""
    monkeypatch.setattr(ov, "_capable", lambda: OLD)


def marked(engine):
    """How many layers of each type stay float32."""
    layers = ET.parse(engine.folder / "model.xml").iterfind("layers/layer")
    return Counter(x.get("type") for x in layers if x.find("rt_info/attribute[@name='precise']") is not None)


def types(engine):
    """Of the constants."""
    constants = ET.parse(engine.folder / "model.xml").iterfind("layers/layer[@type='Const']/data")
    return {data.get("element_type") for data in constants}


def test_weights_are_float16_and_what_overflows_is_marked(old, graph, eager, images, tmp_path):
    built = TARGET.build(graph("tome:r=3@1"), tmp_path, "fp16")
    assert built.options["config"]["INFERENCE_PRECISION_HINT"] == "f16"
    parameters = sum(p.numel() for p in eager().parameters())
    assert (tmp_path / "model.bin").stat().st_size < 2.5 * parameters  # with what the reduction holds
    assert "f16" in types(built)
    found = marked(built)
    assert min(found["TopK"], found["MatMul"]) >= 1  # what decides
    assert found["Divide"] == 2  # the length of a key, which decides, and the mean of merged tokens
    session = TARGET.open(built)
    assert session.compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    got = np.concatenate([session.run(i) for i in images])
    with torch.no_grad():
        want = eager("tome:r=3@1")(torch.from_numpy(np.concatenate(images))).numpy()
    off = np.abs(got - want).max(axis=1) / np.abs(want).max()
    assert 1e-5 < np.median(off) < 5e-3  # weights of 11 bits, float32 arithmetic: neither nothing nor a wrong graph


def test_with_float16_the_file_is_as_ever(monkeypatch, graph, tmp_path):
    monkeypatch.setattr(ov, "_capable", lambda: NEW)
    built = TARGET.build(graph("tome:r=3@1"), tmp_path, "fp16")
    found = marked(built)
    assert found["TopK"] >= 1
    assert found["Divide"] == 1
    assert "f16" not in types(built)
    assert TARGET.runs_here("fp16") is None
    assert seen(TARGET, "fp16").by == TARGET.checked_by


def test_tune_leaves_it_out(old):
    found = space(None, "no blocks", TARGET)
    assert "fp16" not in found.precisions
    assert "does not compute FP16" in found.left_out["fp16"]


def test_the_bundle_says_what_was_seen_and_nobody_times_it_here(old, cli, refused, program_file, pictures, tmp_path):
    said = cli("export", program_file, "--target", "openvino", "--fp16", "-o", "half")
    assert said.code == 0, said.err
    assert "float16 weights, float32 arithmetic" in said.out
    assert "not seen  float16 arithmetic" in said.out
    bundle = Bundle.load(tmp_path / "half")
    assert bundle.manifest["precision"] == "fp16"
    assert "float16 weights, float32 arithmetic" in bundle.manifest["check"]["by"]
    assert bundle.manifest["check"]["sqnr_db"] > 40  # 11 bits: about 60 dB, less what a small net makes of it
    found = cli("eval", "half", "--data", pictures.csv, "--json")
    assert "float32 arithmetic" in found.json["results"][0]["by"]
    assert "not seen: float16 arithmetic" in found.err
    assert "give --device NAME" in refused("profile", "half")
    assert job(bundle, there=True).runner == "openvino"
    with pytest.raises(MeasureError, match="does not compute FP16"):
        job(bundle)
    none = ("export", program_file, "--target", "openvino", "--fp16", "--min-speedup", "1", "-o", "other")
    assert "--min-speedup: this machine cannot time openvino fp16" in refused(*none)

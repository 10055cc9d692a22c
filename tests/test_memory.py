"""Bytes and memory of a bundle, from a real process of its runtime."""

import pytest

from edgevit.bundle import Bundle
from edgevit.memory import memory, sizes
from edgevit.pipeline import ExportSettings, export


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, program_file):
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    export(ExportSettings(model=str(program_file), target="ort", out=out))
    return Bundle.load(out)


def test_memory_grows_from_import_to_load_to_inference(bundle):
    found = memory(bundle)
    # Python with numpy and onnxruntime takes tens of MB; edgevit and torch, 200 MB and more, are not in it
    assert 10e6 < found["imported"] < 150e6
    assert found["imported"] < found["loaded"] <= found["ran"] < 300e6


def test_sizes_are_of_files_and_whole_folders_and_sum_up(bundle, tmp_path):
    assert sizes(bundle)["model.onnx"] == (bundle.folder / "model.onnx").stat().st_size
    assert sum(sizes(bundle).values()) == bundle.size_bytes
    for name, count in (("a/b/c", 3), ("a/d", 4), ("e", 5)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * count)
    nested = Bundle(tmp_path, {"files": dict.fromkeys(("e", "a/b/c", "a/d"))})
    assert list(sizes(nested).items()) == [("a", 7), ("e", 5)]


def test_what_cannot_be_measured_says_why(fake_bundle, bundle, monkeypatch):
    assert memory(Bundle.load(fake_bundle)) == {"not_measured": "the fake target runs nothing"}
    monkeypatch.setattr("edgevit.runtimes.ort.Ort.runner", "")
    monkeypatch.setattr("edgevit.runtimes.ort.Ort.runs_here", lambda self, precision="": "it needs a phone")
    assert memory(bundle) == {"not_measured": "tiny: this machine cannot time ort: it needs a phone"}


def test_inspect_shows_them(cli, bundle):
    found = cli("inspect", bundle.folder, "--json").json
    assert found["parts"]["model.onnx"] > 0
    assert set(found["memory"]) == {"imported", "loaded", "ran"}
    assert "MB" in cli("inspect", bundle.folder).out

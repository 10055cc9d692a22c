"""Target trt: the file a device builds its engine from, accepted by a GPU-less TensorRT-RTX; the builder on a stub."""

import sys
import types

import numpy as np
import pytest
import torch

from edgevit.errors import RuntimeRefusal
from edgevit.runtimes import runtime, trt
from edgevit.runtimes.trt_plan import read_header

pytest.importorskip("onnxruntime")
TARGET = runtime("trt")
pytestmark = pytest.mark.skipif(TARGET.runs_here() is None, reason="with TensorRT and a GPU the engine itself runs")


@pytest.fixture(scope="module")
def engine(graph, tmp_path_factory):
    return TARGET.build(graph("tome:r=3@1"), tmp_path_factory.mktemp("engine"), "fp16")


def test_without_tensorrt_the_bundle_is_the_file_and_says_so(engine):
    assert engine.files == ("model.onnx",)
    assert engine.runtime_version.startswith("built on the device")
    assert "that the device's own TensorRT builds it" in TARGET.unverified
    assert "the device builds and runs the engine" in TARGET.runs_here()


def test_it_is_strongly_typed_and_static(engine):
    import onnx

    model = onnx.load(engine.folder / engine.entry)
    assert {i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)} == {onnx.TensorProto.FLOAT}
    sizes = {kind: 0 for kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)}
    for tensor in model.graph.initializer:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += np.prod(tensor.dims)
    assert sizes[onnx.TensorProto.FLOAT] < 0.01 * sizes[onnx.TensorProto.FLOAT16]


def test_it_runs_as_written(engine, eager, images):
    session, model = TARGET.open(engine, threads=1), eager("tome:r=3@1")
    with torch.no_grad():
        want = np.concatenate([model(torch.from_numpy(i)).numpy() for i in images])
    got = np.concatenate([session.run(i) for i in images])
    # of 8 images a rounded key may pick another token in some
    assert np.median(np.abs(got - want).max(axis=1)) < 4e-3 * np.abs(want).max()


def test_the_manifest_says_what_accepted_it(engine):
    pytest.importorskip("tensorrt_rtx")
    assert engine.options["accepted_by"].endswith("parsed and built for SM86")


def test_and_that_nothing_did(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert trt.accept(tmp_path / "model.onnx", "fp16").startswith("nothing: tensorrt_rtx is not installed (pip install")


@pytest.mark.parametrize(("content", "text"), [
    (b"ONNX", r"is no TensorRT engine: it begins with b'ONNX'; build it again"),
    (b"x" * 40, "begins with b'xxxx'"),
])  # fmt: skip
def test_a_file_that_is_no_engine_is_not_loaded(content, text, tmp_path):
    (tmp_path / "model.plan").write_bytes(content)
    with pytest.raises(RuntimeRefusal, match=text):
        read_header(tmp_path / "model.plan")


def test_an_engine_of_a_device_is_not_opened_here(engine):
    from dataclasses import replace

    with pytest.raises(RuntimeRefusal, match=r"model\.plan runs where it was built: no tensorrt package here"):
        TARGET.open(replace(engine, entry="model.plan"))


class Recorder(types.ModuleType):
    """What `build_plan` asks of the tensorrt package, which needs a GPU."""

    def __init__(self, version, accepts=True):
        super().__init__("tensorrt")
        self.__version__, self.accepts, self.asked = version, accepts, {}
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda logger, level: None})
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
        self.ProfilingVerbosity = types.SimpleNamespace(DETAILED="detailed")
        self.Builder, self.OnnxParser = lambda logger: self, lambda network, logger: self

    def create_network(self, flags):
        self.asked["flags"] = flags

    def parse_from_file(self, path):
        return self.accepts

    def get_error(self, place):
        said = {"desc": "SUB must have same input types", "node_name": "/Sub", "node_operator": "Sub"}
        return types.SimpleNamespace(**{name: lambda value=value: value for name, value in said.items()})

    def create_builder_config(self):
        return self

    def create_timing_cache(self, known):
        self.asked["known"] = known
        return "cache"

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch

    def get_timing_cache(self):
        return types.SimpleNamespace(serialize=lambda: b"learned")

    def build_serialized_network(self, network, config):
        return b"plan"


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", 2), ("10.16.2.10", 2), ("11.4.1", 0)])
def test_types_come_from_the_file_on_10_and_on_11(version, flags, tmp_path, monkeypatch):
    recorder = Recorder(version)
    monkeypatch.setitem(sys.modules, "tensorrt", recorder)
    assert trt.build_plan(tmp_path / "model.onnx", str(tmp_path / "cache.bin")) == b"plan"
    assert recorder.asked == {"flags": flags, "known": b""}
    assert recorder.profiling_verbosity == "detailed"
    trt.build_plan(tmp_path / "model.onnx", str(tmp_path / "cache.bin"))
    assert recorder.asked["known"] == b"learned"


def test_what_its_parser_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", Recorder("10.3.0", accepts=False))
    with pytest.raises(RuntimeRefusal, match=r"TensorRT 10\.3\.0 refuses Sub /Sub: SUB must .*; two types meet here"):
        trt.build_plan(tmp_path / "model.onnx", "")


def test_an_old_tensorrt_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", Recorder("8.6.2"))
    with pytest.raises(RuntimeRefusal, match=r"TensorRT 8\.6\.2 has no strongly typed networks.*JetPack 6\.1"):
        trt.build_plan(tmp_path / "model.onnx", "")

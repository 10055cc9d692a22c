"""TensorRT takes what target `onnx` writes in int8, fp8 and w4, and its own policy: built ahead of time, without a GPU.

int8 and w4 for compute capability 8.6; fp8 for 8.9, the first that has it.
"""

from dataclasses import replace

import pytest
import torch

from edgevit.export.to_onnx import to_onnx
from edgevit.quant.apply import quantize
from edgevit.quant.policies import POLICIES
from edgevit.runtimes import runtime
from edgevit.runtimes.trt_rtx import build_engine
from tests.quant.conftest import INPUTS
from tests.quant.hybrids import HYBRIDS, draw, traced_family

pytest.importorskip("timm")
pytest.importorskip("tensorrt_rtx")

POLICY = runtime("onnx").policy
# All that the policies `onnx` and `tensorrt` quantize, at once: whatever builds with more Q/DQ builds with less. Where
# they are does not depend on how a scale was found.
EVERYTHING = replace(
    POLICIES["onnx"], residuals="skip", ranges=("minmax",), equalize=False, compensate=False, correct_bias=False
)


def check_symmetric(graph):
    """TensorRT's rule: every zero point is 0, activations have one scale."""
    quantizers = [n for n in graph.program.graph.nodes if "quantize_per_tensor" in str(n.target)]
    assert quantizers
    assert all(n.args[2] == 0 and n.args[5] == torch.int8 for n in quantizers)


@pytest.mark.slow
@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_builds(name, tmp_path):
    calibration = [image[None].numpy() for image in draw(name, 4)]
    quantized = quantize(traced_family(name)[1], EVERYTHING, POLICY.rewrites, calibration, len(calibration))
    check_symmetric(quantized)
    to_onnx(quantized, tmp_path / "model.onnx")
    assert build_engine(tmp_path / "model.onnx", ("SM86",))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["onnx", "tensorrt"])
def test_a_hybrid_builds_with_all_steps(policy, tmp_path):
    calibration = [image[None].numpy() for image in draw("edgenext", 4)]
    graph = traced_family("edgenext")[1]
    quantized = quantize(graph, POLICIES[policy], POLICY.rewrites, calibration, len(calibration))
    check_symmetric(quantized)
    to_onnx(quantized, tmp_path / "model.onnx")
    assert build_engine(tmp_path / "model.onnx", ("SM86",))


@pytest.mark.parametrize("schedule", [
    "tome:r=3",
    pytest.param("none", marks=pytest.mark.slow),
    pytest.param("evit:keep=0.5@1,2", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_plain_vit_builds_reduced_or_not(traced, images, schedule, tmp_path):
    quantized = quantize(traced(schedule), POLICIES["tensorrt"], POLICY.rewrites, images, len(images))
    assert quantized.inputs == INPUTS
    check_symmetric(quantized)
    to_onnx(quantized, tmp_path / "model.onnx")
    assert build_engine(tmp_path / "model.onnx", ("SM86",))


@pytest.mark.parametrize(
    ("precision", "capability"), [("fp8", "SM89"), pytest.param("w4", "SM86", marks=pytest.mark.slow)]
)
def test_the_other_precisions_build(traced, images, precision, capability, tmp_path):
    quantized = quantize(traced(), POLICY.quantizes(precision), POLICY.rewrites, images, len(images))
    to_onnx(quantized, tmp_path / "model.onnx")
    assert build_engine(tmp_path / "model.onnx", (capability,))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "capability"), [("fp8", "SM89"), ("w4", "SM86")])
def test_the_other_precisions_build_for_a_hybrid(precision, capability, tmp_path):
    """Depthwise convolutions too."""
    graph = traced_family("edgenext")[1]
    calibration = [image[None].numpy() for image in draw("edgenext", 4)]
    quantized = quantize(graph, POLICY.quantizes(precision), POLICY.rewrites, calibration, len(calibration))
    to_onnx(quantized, tmp_path / "model.onnx")
    assert build_engine(tmp_path / "model.onnx", (capability,))

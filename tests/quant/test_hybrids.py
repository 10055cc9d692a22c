"""Every hybrid runs the whole road: branches fused, traced, quantized, built, and right beside its own program."""

import numpy as np
import pytest
import torch

from edgevit.export.trace import trace
from edgevit.quant.apply import quantize
from edgevit.reparameterize import reparameterize
from edgevit.runtimes import runtime
from edgevit.stages import InputSpec
from tests.quant.hybrids import HYBRIDS, build, draw

pytest.importorskip("timm")

PRECISION = {"ort": "int8", "openvino": "int8+fp32"}
QUICK = [("edgenext", "ort"), ("efficientvit_mit", "openvino")]
CASES = [
    pytest.param(name, target, marks=[] if (name, target) in QUICK else pytest.mark.slow)
    for name in HYBRIDS
    for target in PRECISION
]


def distance(outputs, reference):
    """Of all outputs together, relative to the reference's length."""
    return float(np.linalg.norm(outputs - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize(("name", "target"), CASES)
def test_a_hybrid_is_quantized_and_its_engine_agrees_with_its_program(name, target, tmp_path):
    pytest.importorskip("onnxruntime" if target == "ort" else "openvino")
    found, size = runtime(target), HYBRIDS[name].size
    spec, images = InputSpec(1, size, size), draw(name, 8)
    model = build(name)
    graph = trace(reparameterize(model, spec)[0], spec)
    calibration = [image[None].numpy() for image in images[:4]]
    quantized = quantize(graph, found.policy.scheme, found.policy.rewrites, calibration, len(calibration))
    session = found.open(found.build(quantized, tmp_path, PRECISION[target]), 1)
    with torch.no_grad():
        real = model(images[4:]).numpy()
        program = quantized.program.module()
        fake = np.concatenate([program(image[None]).numpy() for image in images[4:]])
    have = np.concatenate([session.run(image[None].numpy()) for image in images[4:]])
    noise = distance(fake, real)
    assert noise < 0.5
    # a value that rounds to the other side in one layer moves the next ones: no more than the rounding itself does
    assert distance(have, fake) < max(0.05, 1.5 * noise)

"""Every hybrid runs the whole road: branches fused, traced, quantized, built, and right beside its own program."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgevit.quant.apply import quantize
from edgevit.runtimes import runtime
from tests.quant.hybrids import HYBRIDS, draw, traced_family

pytest.importorskip("timm")

IMAGES = 4
TARGETS = ("ort", "openvino")
SEARCHED = ("edgenext", "ort")
PRECISION = "int8+w7"  # what every x86 CPU sums exactly


def distance(outputs, reference):
    """Of all outputs together, relative to the reference's length."""
    return float(np.linalg.norm(outputs - reference) / np.linalg.norm(reference))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_is_quantized_and_its_engine_agrees_with_its_program(name, target, tmp_path):
    pytest.importorskip("onnxruntime" if target == "ort" else "openvino")
    found, images = runtime(target), draw(name, IMAGES)
    model, graph = traced_family(name)
    calibration = [image[None].numpy() for image in images]
    scheme = found.policy.quantizes(PRECISION)
    if (name, target) != SEARCHED:  # no search: nothing is clipped on the images it was calibrated on
        scheme = replace(scheme, ranges=("minmax",), compensate=False, equalize=target == "openvino")
    quantized = quantize(graph, scheme, found.policy.rewrites, calibration, len(calibration))
    session = found.open(found.build(quantized, tmp_path, PRECISION), 1)
    with torch.no_grad():
        real = model(images).numpy()
        program = quantized.program.module()
        fake = np.concatenate([program(image[None]).numpy() for image in images])
    have = np.concatenate([session.run(image[None].numpy()) for image in images])
    # On the images it was calibrated on: so few of so few pixels do not span the ranges of others, and clipping grows
    # from layer to layer of a random network.
    noise = distance(fake, real)
    assert noise < 0.5  # up to 0.35 by rounding alone, behind some 80 layers; a wrong fold leaves nothing: 1 and more
    # a value that rounds to the other side in one layer moves the next ones: no more than the rounding itself does
    assert distance(have, fake) < max(0.1, 1.5 * noise)

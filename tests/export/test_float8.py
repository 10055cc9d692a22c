"""8-bit floats against a list of all their values, in torch and in ONNX Runtime."""

import itertools

import numpy as np
import pytest
import torch

from edgevit.export.float8 import FLOAT8, dequantize_float8, quantize_float8


def e4m3_values():
    """Every finite value of E4M3, from its bits: sign, 4 of exponent (bias 7), 3 of mantissa; index = bits."""
    values = []
    for bits in range(127):  # 127 is NaN
        exponent, mantissa = bits >> 3, bits & 7
        values.append((1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa / 8 * 2.0**-6)
    return values


def nearest(x):
    """The slow way: the nearest of all values, at equal distance the one whose last bit is 0."""
    values = e4m3_values()
    best = min(range(127), key=lambda bits: (abs(abs(x) - values[bits]), bits & 1))
    return values[best] * (-1 if x < 0 else 1)


def samples():
    values = e4m3_values()
    middles = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    drawn = np.random.default_rng(0).standard_normal(500) * np.logspace(-4, 3, 500)
    numbers = np.array([*values, *middles, *drawn, 449, 464, 465, 1e9], np.float32)
    return torch.from_numpy(np.concatenate([numbers, -numbers]))


def test_values_round_to_the_nearest_halves_to_even_and_saturate_at_448():
    x = samples()
    got = quantize_float8(x, torch.tensor(1.0))
    assert got.dtype == FLOAT8
    assert got.float().tolist() == [nearest(v) for v in x.tolist()]


def test_a_scale_is_for_the_tensor_or_for_each_output_channel():
    x, scale = torch.randn(3, 4, 2, 2), torch.tensor([0.25, 1.0, 4.0])  # powers of two divide exactly
    got = dequantize_float8(quantize_float8(x, scale), scale)
    for row, out, s in zip(x, got, scale.tolist(), strict=True):
        assert out.flatten().tolist() == [nearest(v / s) * s for v in row.flatten().tolist()]
    whole = torch.tensor(0.5)
    got = dequantize_float8(quantize_float8(x, whole), whole)
    assert got.flatten().tolist() == [nearest(v * 2) / 2 for v in x.flatten().tolist()]


def test_onnx_runtime_rounds_the_same_way(tmp_path):
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    from edgevit.export.onnx_operators import TRANSLATIONS

    class Rounded(torch.nn.Module):
        def forward(self, x):
            scale = torch.tensor(0.375)
            return torch.ops.edgevit.dequantize_float8(torch.ops.edgevit.quantize_float8(x, scale), scale)

    x = samples()
    program = torch.export.export(Rounded(), (x,))
    written = torch.onnx.export(
        program, (x,), dynamo=True, opset_version=19, verbose=False, custom_translation_table=TRANSLATIONS
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(written.model_proto.SerializeToString(), options)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert np.array_equal(got, Rounded()(x).numpy())

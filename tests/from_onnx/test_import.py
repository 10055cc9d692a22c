"""Whole models: written by torch's exporters, loaded as strangers, equal to the model they came from."""

import json

import numpy as np
import onnx
import pytest
import torch

from edgevit.errors import EdgeVitError, LoadError
from edgevit.from_onnx import ops_math, program
from edgevit.load import load

slow = pytest.mark.slow
EXPORTERS = [  # opset, dynamo
    pytest.param(11, False, id="torchscript-11"),
    pytest.param(17, False, id="torchscript-17"),
    pytest.param(18, True, id="dynamo-18"),
    pytest.param(14, False, id="torchscript-14", marks=slow),
    pytest.param(20, True, id="dynamo-20", marks=slow),
    pytest.param(23, True, id="dynamo-23", marks=slow),
]


def images(count=2, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


def same(checkpoint, module, batch=2, tolerance=1e-4):
    """The imported module against the one the file was written from, on images that the proof did not see."""
    size = checkpoint.preprocess.size[0]
    with torch.no_grad():
        want, got = module(images(batch, size)), checkpoint.module(images(batch, size))
    assert float((got - want).abs().max() / want.abs().max()) < tolerance
    assert checkpoint.origin["equal"]["max_relative_error"] < tolerance


def operators(checkpoint):
    return [step.node.op_type for step in checkpoint.module.graph.children()]


@pytest.mark.parametrize(("opset", "dynamo"), EXPORTERS)
def test_a_vit_from_each_exporter_is_equal_and_of_whole_operators(exported, tiny_vit, opset, dynamo):
    module = tiny_vit()
    for block in module.blocks:
        block.attn.fused_attn = opset > 13  # older ones cannot write torch's own attention
    checkpoint = load(str(exported(module, opset, dynamo)))
    same(checkpoint, module)
    found = operators(checkpoint)
    assert found.count("LayerNormalization") == 2 * 2 + 1
    assert found.count("Linear") == 4 * 2 + 1
    assert found.count("Gelu") == found.count("Attention") == 2
    assert checkpoint.preprocess.size == (32, 32)


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=slow)])
def test_attention_written_as_products(exported, tiny_vit, dynamo):
    module = tiny_vit()
    for block in module.blocks:
        block.attn.fused_attn = False
    checkpoint = load(str(exported(module, 18 if dynamo else 11, dynamo)))
    same(checkpoint, module)
    assert operators(checkpoint).count("Attention") == 2


def test_a_file_of_one_batch_says_so_when_it_gets_another(exported, tiny_vit):
    module = tiny_vit()
    checkpoint = load(str(exported(module, 17, False, dynamic=False)))
    same(checkpoint, module, batch=1)
    with pytest.raises(EdgeVitError, match="exported for batch 1, and gets 2"):
        checkpoint.module(images(2))


def test_half_precision_is_imported_as_float32(exported, tiny_vit):
    module = tiny_vit()
    checkpoint = load(str(exported(tiny_vit().half(), 17, False, dtype=torch.float16)))
    assert {p.dtype for p in checkpoint.module.parameters() if p.is_floating_point()} == {torch.float32}
    same(checkpoint, module, tolerance=2e-2)  # weights and the file's own sums were rounded to 11 bits


@slow
@pytest.mark.parametrize("name", ["mobilevit_xxs", "swin_tiny_patch4_window7_224", "efficientformer_l1", "levit_128s"])
def test_hybrids(exported, name):
    import timm

    module = timm.create_model(name, num_classes=5).eval()
    same(load(str(exported(module, 17, False, size=224))), module)


def test_a_wrong_operator_is_found_by_the_proof(exported, tiny_vit, monkeypatch):
    """Without the comparison with ONNX Runtime, a mistake in the table would be a wrong model."""
    table = {**program.OPERATORS, ("", "Gelu"): program.OPERATORS["", "Relu"]}
    monkeypatch.setattr(program, "OPERATORS", table)
    assert ops_math.gelu  # the function itself is right
    with pytest.raises(LoadError, match="differ from ONNX Runtime's"):
        load(str(exported(tiny_vit(), 17, False)))


def test_channels_last_and_a_branch_on_a_shape(onnx_file):
    path = onnx_file("""
        g (float[n, 4, 6, 3] pixels) => (float[n, 3] y) <int64 four = {4}, int64 one = {1}, int64[1] batch = {-1}>
        {
            t = Transpose <perm = [0, 3, 1, 2]> (pixels)
            s = Shape(pixels)
            h = Gather(s, one)
            c = Equal(h, four)
            u = If (c) <
                then_branch = then_graph () => (float[n, 3, 4, 6] a) { a = Relu(t) },
                else_branch = else_graph () => (float[n, 3, 4, 6] b) { b = Neg(t) }
            >
            y = ReduceMean <axes = [2, 3], keepdims = 0> (u)
        }""")
    checkpoint = load(str(path))
    assert checkpoint.preprocess.size == (4, 6)
    image = torch.rand(2, 3, 4, 6) - 0.5
    torch.testing.assert_close(checkpoint.module(image), image.relu().mean((2, 3)))


def test_any_size_needs_one(onnx_file):
    path = onnx_file("g (float[n, 3, h, w] x) => (float[n, 3] y) { y = ReduceMean <axes = [2, 3], keepdims = 0> (x) }")
    with pytest.raises(LoadError, match="pass --input-size"):
        load(str(path))
    assert load(str(path), input_size=(16, 8)).preprocess.size == (16, 8)


def test_weights_that_are_not_finite(exported, tiny_vit):
    module = tiny_vit()
    with torch.no_grad():
        module.norm.bias[3] = float("nan")
    with pytest.raises(LoadError, match="NaN or infinite"):
        load(str(exported(module, 17, False)))


# The common road


@pytest.mark.parametrize("more", [(), pytest.param(("--int8",), marks=slow)])
def test_an_onnx_file_goes_the_whole_way(cli, exported, tiny_vit, pictures, more):
    path = exported(tiny_vit(), 17, False)
    calib = ("--calib", pictures.csv) if more else ()
    result = cli("export", path, "--target", "ort", "-o", "out", "--json", *more, *calib)
    assert result.code == 0, result.err
    manifest = json.loads((path.parent / "out" / "manifest.json").read_text())
    assert manifest["model"]["onnx"]["opset"] == 17
    assert manifest["model"]["onnx"]["equal"]["max_relative_error"] < 1e-4
    if more:
        written = onnx.load(path.parent / "out" / "model.onnx")
        assert any(node.op_type == "QuantizeLinear" for node in written.graph.node)


def test_its_own_export_comes_back(cli, exported, tiny_vit):
    """edgevit's own ONNX file is one more foreign file: the same outputs after the second round."""
    module = tiny_vit()
    path = exported(module, 17, False)
    assert cli("export", path, "--target", "onnx", "-o", "out").code == 0
    same(load(str(path.parent / "out" / "model.onnx")), module, batch=1)


def test_a_file_that_is_no_onnx_is_one_line(refused, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert "model.onnx is corrupt, truncated or no ONNX file" in refused(
        "export", "model.onnx", "--target", "fake", "-o", "o"
    )
    assert "absent.onnx does not exist" in refused("export", "absent.onnx#y", "--target", "fake", "-o", "o")


def test_an_output_is_named_behind_the_file(onnx_file):
    path = onnx_file("g (float[1, 3, 8, 8] a) => (float[1, 3, 8, 8] scores, float[1, 3, 8, 8] features)"
                     " { features = Relu(a) scores = Neg(a) }")  # fmt: skip
    image = torch.rand(1, 3, 8, 8)
    np.testing.assert_array_equal(load(f"{path}#scores").module(image), -image)

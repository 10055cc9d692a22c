"""The whole road on models that no adapter knows: dense and int8, and a reduction refused with the known families."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from edgevit.adapters import ADAPTERS
from edgevit.bundle import Bundle
from edgevit.errors import UnsupportedModel
from edgevit.pipeline import ExportSettings, export
from edgevit.runtimes import runtime

timm = pytest.importorskip("timm")
safetensors_torch = pytest.importorskip("safetensors.torch")

MODELS = {"test_convnext": 64, "edgenext_xx_small": 64}  # a convolutional net; convolution and attention together


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """Factory: seeded weights of a timm model as a safetensors file that names its architecture."""
    folder, files = tmp_path_factory.mktemp("models"), {}

    def get(name):
        if name not in files:
            torch.manual_seed(0)
            model = timm.create_model(name, num_classes=7).eval()
            for module in model.modules():
                if hasattr(module, "gamma") and isinstance(module.gamma, torch.nn.Parameter):
                    torch.nn.init.uniform_(module.gamma, 0.2, 0.8)  # LayerScale at 1e-6 would hide the blocks
            preprocess = {"size": [MODELS[name]] * 2, "resize": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}
            metadata = {"arch": f"timm:{name}", "num_classes": "7", "preprocess": json.dumps(preprocess)}
            files[name] = folder / f"{name}.safetensors"
            safetensors_torch.save_file(model.state_dict(), files[name], metadata)
        return files[name]

    return get


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Eight smooth images as a labelled CSV."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    with (folder / "data.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "label"])
        for i in range(8):
            coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            coarse.resize((80, 72)).save(folder / f"{i}.png")
            rows.writerow([f"{i}.png", i % 7])
    return folder / "data.csv"


QUICK = [("test_convnext", "ort", "fp32")]
THOROUGH = [
    ("test_convnext", "ort", "int8"),
    ("test_convnext", "openvino", "int8"),
    ("edgenext_xx_small", "ort", "fp32"),
    ("edgenext_xx_small", "openvino", "int8"),  # also holds a convolution that reads a constant
    ("test_convnext", "openvino", "fp32"),
    ("edgenext_xx_small", "ort", "int8"),
    ("edgenext_xx_small", "openvino", "fp32"),
]


@pytest.mark.parametrize(
    ("name", "target", "precision"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in THOROUGH)]
)
def test_a_model_without_adapter_exports_dense_and_int8(model_file, photographs, tmp_path, name, target, precision):
    pytest.importorskip("onnxruntime" if target == "ort" else "openvino")
    calib = photographs if precision == "int8" else None
    result = export(
        ExportSettings(
            model=str(model_file(name)), target=target, out=tmp_path / "out", precision=precision, calib=calib
        )
    ).to_json()
    assert result["precision"].startswith(precision)
    assert result["schedule"] == "none"
    assert result["tokens"] == []
    assert result["macs"]["reduced"] == result["macs"]["dense"] > 1e6
    assert result["checks"]["relative_diff"] < (1e-4 if precision == "fp32" else 1)
    assert (len(result["kept_float"]) > 0) is (precision == "int8")
    bundle = Bundle.load(tmp_path / "out")
    session = runtime(target).open(bundle.engine)
    size = MODELS[name]
    outputs = session.run(np.zeros((1, 3, size, size), np.float32))
    assert outputs.shape == (1, 7)
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("name", MODELS)
def test_reducing_a_model_without_adapter_is_refused_with_the_known_families(model_file, tmp_path, name):
    settings = ExportSettings(model=str(model_file(name)), target="fake", out=tmp_path / "out", reduce="tome:r=8")
    with pytest.raises(UnsupportedModel) as refused:
        export(settings)
    text = str(refused.value)
    assert "has no adapter, so its tokens cannot be reduced; it exports dense (drop --reduce)" in text
    assert all(family in text for family in ADAPTERS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_int8_counts_the_same_macs_as_fp32(model_file, photographs, tmp_path):
    counts = []
    for precision, calib in [("fp32", None), ("int8", photographs)]:
        settings = ExportSettings(
            model=str(model_file("test_convnext")),
            target="fake",
            out=tmp_path / precision,
            precision=precision,
            calib=calib,
        )
        counts.append(export(settings).to_json()["macs"]["dense"])
    assert counts[0] == counts[1]


@pytest.fixture(scope="module")
def branched_file(tmp_path_factory):
    """A pickled RepVGG of four blocks, of two and three branches."""
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    torch.manual_seed(0)
    blocks = tuple(ByoBlockCfg("rep", d=2, c=16, s=2, gs=0) for _ in range(2))
    model = ByobNet(ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=8), num_classes=7)
    path = tmp_path_factory.mktemp("branched") / "rep.pt"
    torch.save(model.eval(), path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_branches_are_fused_for_int8_and_left_in_the_float_baseline(branched_file, photographs, tmp_path, precision):
    settings = ExportSettings(
        model=str(branched_file),
        trust_pickle=True,
        target="fake",
        out=tmp_path / "out",
        precision=precision,
        calib=photographs if precision == "int8" else None,
    )
    passes = export(settings).bundle.manifest["passes"]
    assert passes == (["reparameterize"] if precision == "int8" else [])

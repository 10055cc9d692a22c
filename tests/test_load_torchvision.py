"""`torchvision:NAME`, as MODEL and as --arch of a file. No network."""

import sys

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import LoadError
from edgevit.load import load

pytest.importorskip("torchvision")

from torchvision.models import vision_transformer as tv

ARCH = "torchvision:vit_b_32"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """torchvision's own builder of vit_b_32, with two narrow layers: the real one has 88 million weights."""
    original = tv._vision_transformer

    def build(**options):
        return original(**{**options, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16})

    monkeypatch.setattr(tv, "_vision_transformer", build)


def model(**options):
    """The narrow vit_b_32, filled so that its outputs depend on the image."""
    built = tv.vit_b_32(**{"image_size": 64, "num_classes": 5, **options}).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return built


@pytest.fixture
def weights(tmp_path):
    """Factory: a file with a state dict."""

    def write(state):
        torch.save(state, tmp_path / "model.pt")
        return str(tmp_path / "model.pt")

    return write


def images(side=64):
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_state_dict_with_its_architecture(weights):
    own = model()
    checkpoint = load(weights(own.state_dict()), arch=ARCH, input_size=(64, 64))
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.callable()(images()), own(images()), rtol=0, atol=1e-6)  # same kernels
    assert checkpoint.arch == ARCH
    assert adapt(checkpoint.module).grid == (2, 2)


def test_the_old_names_of_the_published_files(weights):
    own = model()
    state = {
        k.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v
        for k, v in own.state_dict().items()
    }
    assert any("linear_1" in key for key in state)
    checkpoint = load(weights(state), arch=ARCH, input_size=(64, 64))
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.callable()(images()), own(images()), rtol=0, atol=1e-6)


def test_preprocessing_is_that_of_the_published_weights(weights):
    own = model(image_size=224, num_classes=1000)
    spec = load(weights(own.state_dict()), arch=ARCH).preprocess
    preset = tv.ViT_B_32_Weights.DEFAULT.transforms()
    assert spec.size == (224, 224)
    assert spec.resize == "shortest"
    assert spec.interpolation == "bilinear"
    assert list(spec.mean) == preset.mean
    from PIL import Image

    pixels = torch.randint(0, 256, (300, 400, 3), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    torch.testing.assert_close(torch.from_numpy(spec.tensor(image)), preset(image), rtol=0, atol=1e-5)  # other order


def test_positions_are_resampled_when_another_size_is_asked_for(weights):
    path = weights(model().state_dict())
    checkpoint = load(path, arch=ARCH, input_size=(96, 96))
    assert adapt(checkpoint.module).grid == (3, 3)
    assert checkpoint.preprocess.size == (96, 96)
    with pytest.raises(LoadError, match=r"pos_embedding is \[1, 5, 16\], the model has \[1, 50, 16\]"):
        load(path, arch=ARCH)  # never in silence


def test_another_classifier_than_a_vit(weights):
    from torchvision.models import mobilenet_v3_small

    own = mobilenet_v3_small(num_classes=3).eval()
    checkpoint = load(weights(own.state_dict()), arch="torchvision:mobilenet_v3_small")
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.callable()(images()), own(images()), rtol=0, atol=1e-6)


def test_published_weights_by_name(monkeypatch):
    own = model(image_size=224, num_classes=1000)
    monkeypatch.setattr(tv.WeightsEnum, "get_state_dict", lambda self, **options: own.state_dict())
    checkpoint = load(ARCH)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.callable()(images(224)), own(images(224)), rtol=0, atol=1e-6)
    assert len(checkpoint.labels) == 1000
    assert checkpoint.labels[0] == "tench"


def test_without_torchvision_the_extra_is_named(monkeypatch):
    from edgevit.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgevit\[torchvision\]'"):
        load(ARCH)


def test_published_weights_without_a_network(refused, monkeypatch):
    def offline(self, **options):
        raise OSError("urlopen error: no route")

    monkeypatch.setattr(tv.WeightsEnum, "get_state_dict", offline)
    text = refused("export", ARCH, "--target", "fake", "-o", "out")
    assert "no route" in text
    assert f"edgevit export FILE --arch {ARCH}" in text


@pytest.mark.parametrize(
    ("arch", "size", "says"),
    [
        ("torchvision:vit_b_61", None, "no image classifier 'vit_b_61' (did you mean vit_b_16?)"),
        ("torchvision:fcn_resnet50", None, "no image classifier"),
        (ARCH, (64, 96), "takes square images"),
        (ARCH, (65, 65), "cannot be built"),
    ],
)
def test_what_cannot_be_built(weights, arch, size, says):
    with pytest.raises(LoadError) as refused:
        load(weights(model().state_dict()), arch=arch, input_size=size)
    assert says in str(refused.value)


def test_a_state_dict_of_something_else(weights):
    with pytest.raises(LoadError, match=r"does not fit torchvision:vit_b_32: .* keys missing"):
        load(weights({"weight": torch.ones(2)}), arch=ARCH)

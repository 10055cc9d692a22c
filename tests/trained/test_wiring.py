"""A checkpoint file through --arch: loaded as what was saved, refused where it does not fit, exported."""

import re

import pytest
import torch
from safetensors.torch import save_file

from edgevit.errors import LoadError
from edgevit.load import load
from edgevit.tokens import method
from edgevit.trained import TRAINED, trained

pytest.importorskip("timm")
from timm.models import register_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
SWIN = {"patch_size": 2, "embed_dim": 12, "depths": (1, 1, 6), "num_heads": (1, 1, 2), "window_size": 4}
FOR_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
CLASSES = 5
# What --arch must say beside the backbone, and the same as create() takes it.
SAYS = {"sit": ",stages=1/1/1", "lookupvit": ",compressed=2", "dtop": ",stages=1/2"}
GIVEN = {
    "dynamicvit": {"blocks": (1, 2, 3)},
    "sit": {"stages": (1, 1, 1)},
    "stvit": {"semantic": 2},
    "lookupvit": {"compressed": (2, 2)},
    "dtem": {},
    "dtop": {"stages": (1, 2), "layers": 2},
}
everywhere = pytest.mark.parametrize("architecture", TRAINED)


@register_model
def wired_vit(pretrained=False, **options):
    """A ViT small enough to be saved, loaded and exported in a test."""
    return VisionTransformer(**{**VIT, **{k: v for k, v in options.items() if k not in FOR_TIMM}})


@register_model
def wired_swin(pretrained=False, **options):
    """A Swin with six blocks in its third stage."""
    return SwinTransformer(**{**SWIN, **{k: v for k, v in options.items() if k not in FOR_TIMM}})


def backbone(architecture):
    return "wired_swin" if architecture == "stvit" else "wired_vit"


def side(architecture):
    return 64 if architecture == "stvit" else 32


def arch(architecture, says=None):
    return f"{architecture}:{backbone(architecture)}{SAYS.get(architecture, '') if says is None else says}"


def build(architecture, **changes):
    """A trained module of random weights, on a backbone that timm knows by name."""
    size = (side(architecture),) * 2
    settings = {**GIVEN[architecture], **changes}
    module = trained(architecture)(backbone(architecture), CLASSES, size, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1 and ("norm" in name or "ls" in name or "scale" in name):
                parameter.uniform_(0.4, 1.2, generator=generator)
            elif "presence" in name:
                parameter.mul_(0.05)  # all classes about equally present, so that DToP's tokens differ in theirs
            else:
                parameter.normal_(0, 0.2, generator=generator)
    return module


def pictures(architecture, batch=2):
    size = side(architecture)
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def saved(tmp_path):
    """Factory: `saved(architecture, metadata, name, **settings)` → a checkpoint file and the module in it."""

    def save(architecture, metadata=None, name="net.safetensors", **changes):
        module, path = build(architecture, **changes), tmp_path / name
        if path.suffix == ".safetensors":
            save_file(module.state_dict(), path, metadata)
        else:
            torch.save({"model": module.state_dict()}, path)
        return str(path), module

    return save


@everywhere
@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
def test_a_checkpoint_loads_as_what_was_saved(saved, architecture, name):
    path, module = saved(architecture, name=name)
    size = (side(architecture),) * 2
    checkpoint = load(path, arch=arch(architecture), input_size=size)
    assert checkpoint.arch == arch(architecture)
    assert checkpoint.preprocess.size == size
    assert type(checkpoint.module) is type(module)
    assert checkpoint.module.tokens == module.tokens
    with torch.no_grad():
        x = pictures(architecture)
        assert torch.equal(checkpoint.module(x), module(x))


def test_the_repositorys_spelling_loads_too(tmp_path):
    module = build("dynamicvit")
    renamed = {
        k.removeprefix("backbone.").replace("predictors.", "score_predictor."): v
        for k, v in module.state_dict().items()
    }
    torch.save(renamed, tmp_path / "net.pth")
    loaded = load(str(tmp_path / "net.pth"), arch=arch("dynamicvit"), input_size=(32, 32)).module
    with torch.no_grad():
        assert torch.equal(loaded(pictures("dynamicvit")), module(pictures("dynamicvit")))


def test_what_the_weights_say_need_not_be_said(saved):
    path, _ = saved("dynamicvit", blocks=(2, 3))
    assert len(load(path, arch=arch("dynamicvit"), input_size=(32, 32)).module.predictors) == 2
    path, _ = saved("sit", keep=0.7)
    assert load(path, arch=arch("sit"), input_size=(32, 32)).module.counts == (11, 7)
    path, _ = saved("stvit", semantic=3)
    assert load(path, arch=arch("stvit"), input_size=(64, 64)).module.semantic == 3


def test_metadata_say_the_settings_and_arch_goes_before_them(saved):
    path, module = saved("sit", {"arch": "sit:wired_vit", "stages": "1/2"}, stages=(1, 2))
    assert load(path, input_size=(32, 32)).module.tokens == module.tokens == (17, 9, 9)
    assert load(path, arch=arch("sit", ",stages=2/1"), input_size=(32, 32)).module.tokens == (17, 17, 9)


WRONG_ARCH = {
    "sit:wired_vit": r"do not say behind which blocks a SiT slims; add the blocks per stage, 3 numbers that make 3",
    "sit:wired_vit,stages=1/1": r"stages=\[1, 1\] must be blocks per stage, 3 in all",
    "sit:wired_vit,stages=1/2": r"2 slimmings need 3 stages, got stages=\[1, 2\]",
    "sit:wired_vit,stages=one": "stages=one must be a number, or several like 9/3/2/2",
    "sit:wired_vit,stage=1/1/1": r"sit has no setting 'stage' \(did you mean stages\?\); it has stages",
    "dtem:wired_vit,r=8": "dtem has no setting 'r'; the weights say everything",
    "dtop:wired_vit": "behind which blocks the heads of a DToP stand",
    "dynamicvit:no_vit": "timm has no model 'no_vit'",
    "dynamicvit:wired_vit": r"keys missing .*unexpected .*is --arch right\?",
    "dynamicvitt:wired_vit": r"is not understood \(did you mean dynamicvit\?\); write timm:",
}


@pytest.mark.parametrize("given", WRONG_ARCH)
def test_an_arch_that_does_not_fit_is_refused(saved, given):
    architecture = given.split(":")[0]
    path, _ = saved(architecture if architecture in ("sit", "dtop", "dtem") else "lookupvit")
    with pytest.raises(LoadError, match=WRONG_ARCH[given]):
        load(path, arch=given, input_size=(32, 32))


def test_every_method_says_that_it_needs_its_checkpoint(cli):
    rows = {row["name"]: row for row in cli("methods", "--json").json["methods"]}
    for name in TRAINED:
        assert f"its trained checkpoint (--arch {name}:NAME)" in rows[name]["needs"]
        assert re.fullmatch(rf"`{name}:\S+`.*", rows[name]["example"])
        assert method(name).weights == name


EXPORTS = [
    ("dynamicvit", "dynamicvit:keep=0.7", "ort", [12, 8, 6]),
    ("lookupvit", "lookupvit:compressed=3", "fake", [9, 9, 9]),
    ("dtop", "none", "fake", [17, 17, 17]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "spec", "target", "tokens"), EXPORTS)
def test_a_checkpoint_file_becomes_a_bundle(saved, cli, architecture, spec, target, tokens):
    path, _ = saved(architecture)
    if target == "ort":
        pytest.importorskip("onnxruntime")
    words = ["--arch", arch(architecture), "--input-size", "32", "--reduce", spec, "--target", target]
    result = cli("export", path, *words, "-o", "out", "--json")
    assert result.code == 0, result.err
    assert result.json["schedule"] == spec
    assert result.json["tokens"] == tokens
    assert result.json["checks"]["static_shapes"]

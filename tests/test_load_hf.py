"""`hf:FOLDER`: what transformers saved is loaded as it is meant, or refused with what to do. No network."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import LoadError
from edgevit.hashes import sha256_file
from edgevit.load import load
from edgevit.load_hf import to_preprocess

transformers = pytest.importorskip("transformers")

BUILDERS = runpy.run_path(str(Path(__file__).parent / "adapters" / "families_other.py"))
ALL = {**BUILDERS["FAMILIES"], **BUILDERS["VARIANTS"]}
SAME = {"rtol": 0, "atol": 1e-6}  # the same kernels on the same weights
VIT = "transformers ViT (classifier)"
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """Factory: a model in a folder as save_pretrained leaves it, with an image processor; (model, "hf:FOLDER")."""

    def save(name=VIT, processor=PROCESSOR, **config):
        model = ALL[name]()
        for key, value in config.items():
            setattr(model.config, key, value)
        model.save_pretrained(tmp_path / "model")
        if processor is not None:
            (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
        return model, f"hf:{tmp_path / 'model'}"

    return save


def images(size=(32, 32)):
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def outputs(checkpoint, size=(32, 32)):
    with torch.no_grad():
        return checkpoint.callable()(images(size))


# What loads


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        (VIT, "ViTForImageClassification"),
        ("transformers DeiT distilled", "DeiTForImageClassificationWithTeacher"),
        ("ViT without pooler", "ViTModel"),
        ("transformers ViT (token outputs)", "ViTModel"),
        ("transformers DINOv2 with registers (token outputs)", "Dinov2WithRegistersModel"),
        ("transformers CLIP vision (image embedding)", "CLIPVisionModelWithProjection"),
        ("transformers SigLIP vision (attention pooling)", "SiglipVisionModel"),
        ("CLIP classifier", "CLIPForImageClassification"),
    ],
)
def test_a_saved_model_computes_what_it_did(saved, name, arch):
    model, where = saved(name)
    checkpoint = load(where)
    assert checkpoint.arch == f"hf:{arch}"
    with torch.no_grad():
        want = model(images())[checkpoint.module.output]
    torch.testing.assert_close(outputs(checkpoint), want, **SAME)
    assert adapt(checkpoint.module).image_size == (32, 32)


def test_the_checkpoint_says_where_it_came_from(saved, capfd):
    _, where = saved(id2label={i: f"kind {i}" for i in range(7)})
    capfd.readouterr()  # transformers' progress while it saved
    checkpoint = load(where)
    folder = Path(where.removeprefix("hf:"))
    assert checkpoint.name == "model"
    assert checkpoint.source == folder
    assert checkpoint.sha256 == sha256_file(folder / "model.safetensors")
    assert checkpoint.labels == tuple(f"kind {i}" for i in range(7))
    assert checkpoint.preprocess.resize == "squash"
    assert checkpoint.preprocess.interpolation == "bilinear"
    assert checkpoint.preprocess.mean == (0.5, 0.4, 0.3)
    assert capfd.readouterr() == ("", "")  # no progress bars, no advice


def test_classes_that_are_only_numbered_give_no_labels(saved):
    assert load(saved()[1]).labels is None


def test_half_precision_weights_become_float32(saved, tmp_path):
    ALL[VIT]().half().save_pretrained(tmp_path / "half")
    (tmp_path / "half" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    module = load(f"hf:{tmp_path / 'half'}").module
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def two_towers(kind, folder):
    sizes = BUILDERS["VIT"]
    text = {key: sizes[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")}
    text |= {"num_hidden_layers": 1, "vocab_size": 49408}
    config = getattr(transformers, f"{kind}Config")(vision_config=dict(sizes), text_config=text)
    model = BUILDERS["randomised"](getattr(transformers, f"{kind}Model")(config))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_of_two_towers_the_image_embedding_is_loaded(tmp_path, kind):
    model = two_towers(kind, tmp_path)
    with torch.no_grad():
        found = model.get_image_features(images())
        want = found if isinstance(found, torch.Tensor) else found.pooler_output
    torch.testing.assert_close(outputs(load(f"hf:{tmp_path}")), want, **SAME)


def test_another_output_than_the_default_by_its_name(saved):
    model, where = saved("transformers CLIP vision (image embedding)")
    checkpoint = load(f"{where}#last_hidden_state")
    with torch.no_grad():
        torch.testing.assert_close(outputs(checkpoint), model(images()).last_hidden_state, **SAME)
    assert adapt(checkpoint.module).pooling == "none"


def test_an_output_that_the_model_does_not_have(saved, refused):
    _, where = saved()
    text = refused("export", f"{where}#embedding", "--target", "fake", "-o", "out")
    assert "ViTForImageClassification returns no 'embedding'" in text


@pytest.mark.parametrize("name", [VIT, "transformers DeiT distilled"])
def test_input_size_resamples_positions_as_the_library_does(saved, name):
    model, where = saved(name)
    checkpoint = load(where, input_size=(48, 64))
    assert checkpoint.preprocess.size == (48, 64)
    with torch.no_grad():
        want = model(images((48, 64)), interpolate_pos_encoding=True).logits
    torch.testing.assert_close(outputs(checkpoint, (48, 64)), want, **SAME)
    assert adapt(checkpoint.module).grid == (6, 8)


@pytest.mark.parametrize(
    "name", ["transformers SigLIP vision (attention pooling)", "transformers CLIP vision (image embedding)"]
)
def test_square_towers_take_another_square(saved, name):
    model, where = saved(name)
    checkpoint = load(where, input_size=(48, 48))
    with torch.no_grad():
        want = model(images((48, 48)), interpolate_pos_encoding=True)[checkpoint.module.output]
    torch.testing.assert_close(outputs(checkpoint, (48, 48)), want, **SAME)
    with pytest.raises(LoadError, match="takes square images, not 48x64"):
        load(where, input_size=(48, 64))


@pytest.mark.parametrize("name", ["transformers DINOv2 (classifier)", "DINOv2 registers classifier"])
def test_dinov2_runs_at_the_size_its_preprocessing_makes(saved, name):
    crop = {**PROCESSOR, "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 64}}
    crop |= {"do_center_crop": True, "crop_size": {"height": 48, "width": 48}}
    model, where = saved(name, crop)
    checkpoint = load(where)
    assert (checkpoint.preprocess.size, checkpoint.preprocess.crop_pct) == ((48, 48), 0.75)
    with torch.no_grad():
        torch.testing.assert_close(outputs(checkpoint, (48, 48)), model(images((48, 48))).logits, **SAME)
    from edgevit.export.trace import trace
    from edgevit.stages import InputSpec

    operators = {str(n.target) for n in trace(checkpoint.module, InputSpec(1, 48, 48)).program.graph.nodes}
    assert not any("upsample" in name for name in operators)  # resampled once, not in every inference


def test_the_users_preprocessing_replaces_that_of_the_folder(saved, tmp_path):
    _, where = saved(processor=None)
    (tmp_path / "own.json").write_text(json.dumps({"size": [32, 32], "resize": "squash", "mean": [0, 0, 0]}))
    assert load(where, preprocess=tmp_path / "own.json").preprocess.mean == (0, 0, 0)


def test_the_whole_way_to_a_bundle_with_labels(saved, cli, tmp_path):
    _, where = saved(id2label={i: f"kind {i}" for i in range(7)})
    result = cli("export", where, "--target", "fake", "--reduce", "tome:r=3", "-o", "out", "--json")
    assert result.code == 0, result.err
    assert result.json["tokens"] == [14, 11, 8]
    assert (tmp_path / "out" / "labels.txt").read_text().splitlines() == [f"kind {i}" for i in range(7)]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["model"]["arch"] == "hf:ViTForImageClassification"
    assert "labels.txt" in manifest["files"]


# What is refused


def why(where, **options):
    with pytest.raises(LoadError) as refused:
        load(where, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_folder_that_is_none_of_transformers(tmp_path):
    assert "has no config.json; give the folder that save_pretrained wrote" in why(f"hf:{tmp_path}")
    assert "there is no folder" in why(f"hf:{tmp_path / 'absent'}")
    assert "write hf:FOLDER" in why("hf:")


def test_without_transformers_the_extra_is_named(saved, monkeypatch):
    from edgevit.errors import MissingExtra

    _, where = saved()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgevit\[hf\]'"):
        load(where)


def test_a_name_without_a_network_says_to_give_a_folder(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to the hub")  # its real retries take half a minute

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    text = why("hf:someone/model")
    assert "We couldn't connect" in text
    assert "without a network give hf:FOLDER" in text


def test_no_preprocessing(saved):
    assert "has no preprocessor_config.json" in why(saved(processor=None)[1])
    assert "--preprocess FILE" in why(saved(processor=None)[1])


def test_preprocessing_of_another_size_than_the_model(saved):
    _, where = saved(processor={**PROCESSOR, "size": {"height": 48, "width": 48}})
    assert "makes images of 48x48, the model takes 32x32; pass --input-size" in why(where)
    assert load(where, input_size=(32, 32)).preprocess.size == (32, 32)


def change_config(where, **values):
    path = Path(where.removeprefix("hf:")) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"architectures": []}, "names no architectures"),
        ({"architectures": ["ViTForEverything"]}, "which transformers"),
        ({"architectures": ["logging"]}, "which transformers"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "keys missing"),
        ({"architectures": ["BertModel"]}, "takes no images"),
        ({"architectures": ["Dinov2ForImageClassification"]}, "hf:"),
        ({"model_type": "nonsense"}, "cannot be read"),
        ({"num_hidden_layers": 4}, "keys missing"),
        ({"num_hidden_layers": 2}, "unexpected"),
        ({"hidden_size": 24}, "cannot be read"),
        ({"auto_map": {"AutoConfig": "code.Config"}, "model_type": "mine"}, "cannot be read"),
    ],
)
def test_a_config_that_does_not_fit_the_weights(saved, values, says):
    _, where = saved()
    change_config(where, **values)
    assert says in why(where)


def test_an_encoder_whose_output_is_no_one_tensor(saved):
    _, where = saved("transformers ViT (token outputs)")
    model = BUILDERS["hf"]("ViT", BUILDERS["VIT"], "ForMaskedImageModeling", encoder_stride=8)
    model.save_pretrained(where.removeprefix("hf:"))
    assert "edgevit loads image classifiers and vision encoders" in why(where)


def test_truncated_and_absent_weights(saved):
    _, where = saved()
    path = Path(where.removeprefix("hf:")) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot be read" in why(where)
    path.unlink()
    assert "cannot be read" in why(where)


def test_pickled_weights_are_not_read(saved, tmp_path):
    model, where = saved()
    folder = Path(where.removeprefix("hf:"))
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert "cannot be read" in why(where)


def test_weights_that_are_not_finite(saved):
    model, where = saved()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    model.save_pretrained(where.removeprefix("hf:"))
    assert "NaN or infinite weights in classifier.bias" in why(where)


CROP = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}}


@pytest.mark.parametrize(
    ("change", "resize", "size", "crop_pct"),
    [
        ({}, "squash", (32, 32), 1.0),
        ({"size": {"height": 32, "width": 48}}, "squash", (32, 48), 1.0),
        ({"size": {"shortest_edge": 32}, **CROP}, "shortest", (28, 28), 0.875),
        (CROP, "squash_crop", (28, 28), 0.875),
        ({"size": {"shortest_edge": 28, "longest_edge": None}, **CROP}, "shortest", (28, 28), 1.0),
    ],
)
def test_preprocessing_that_can_be_expressed(change, resize, size, crop_pct):
    got = to_preprocess({**PROCESSOR, **change})
    assert (got.resize, got.size, got.crop_pct) == (resize, size, crop_pct)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"do_resize": False}, "does not resize"),
        ({"do_rescale": False}, "not divided by 255"),
        ({"rescale_factor": 1 / 127.5}, "not divided by 255"),
        ({"do_pad": True}, "do_pad"),
        ({"crop_pct": 0.9}, "crop_pct"),
        ({"size": {"shortest_edge": 32}}, "images of any shape"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "is not height and width"),
        ({**CROP, "size": {"shortest_edge": 24}}, "not of the same shape and smaller"),
        ({**CROP, "size": {"height": 32, "width": 48}}, "not of the same shape and smaller"),
    ],
)
def test_preprocessing_that_cannot_be_expressed(change, says):
    with pytest.raises(LoadError, match=says):
        to_preprocess({**PROCESSOR, **change})


@pytest.mark.parametrize(
    "change", [{}, {"size": {"shortest_edge": 36}, **CROP}, {"size": {"height": 36, "width": 36}, **CROP}]
)
def test_an_image_comes_out_as_transformers_makes_it(change):
    from PIL import Image

    pixels = torch.randint(0, 256, (40, 80, 3), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())  # 36 high it is 72 wide: an even overhang, which nobody has to round
    settings = {"do_center_crop": False, **PROCESSOR, **change}
    own = transformers.DeiTImageProcessorPil(**{k: v for k, v in settings.items() if k != "image_processor_type"})
    want = own(image, return_tensors="pt").pixel_values[0]
    got = torch.from_numpy(to_preprocess(settings).tensor(image))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)  # float32 arithmetic in another order

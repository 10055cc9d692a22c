"""Reading a MODEL: what loads, and what each broken file is told. Errors go through the command line."""

import json
import os
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from edgevit.load import load

ARCH = "timm:test_vit3"  # the smallest ViT that timm has by name
SIZE = (32, 32)
SQUASH = {"size": [32, 32], "resize": "squash", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def named_vit():
    """A ViT that timm has by name, for 32-pixel images and 7 classes."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_vit3", img_size=SIZE, num_classes=7).eval()


@pytest.fixture
def weights(tmp_path, named_vit):
    """Factory: a safetensors file of the named ViT with metadata and, if asked, changed tensors."""

    def write(metadata=None, change=None):
        state = {key: value.clone() for key, value in named_vit.state_dict().items()}
        if change:
            change(state)
        path = tmp_path / "model.safetensors"
        save_file(state, path, metadata)
        return path

    return write


def export(model, *more):
    return ("export", model, "--target", "fake", "-o", "out", *more)


# What loads


def same_outputs(checkpoint, model):
    images = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.callable()(images), model(images), rtol=0, atol=1e-5)  # same kernels


def test_safetensors_metadata_give_architecture_classes_and_preprocessing(weights, named_vit):
    path = weights({"arch": ARCH, "num_classes": "7", "preprocess": json.dumps(SQUASH)})
    checkpoint = load(str(path), input_size=SIZE)
    assert checkpoint.arch == ARCH
    assert checkpoint.preprocess.resize == "squash"
    assert checkpoint.preprocess.mean == (0.5, 0.4, 0.3)
    same_outputs(checkpoint, named_vit)


def test_num_classes_come_from_the_weights_where_metadata_have_none(weights, named_vit):
    same_outputs(load(str(weights()), arch=ARCH, input_size=SIZE), named_vit)


def test_num_classes_come_from_the_classifier_that_timm_names(tmp_path):
    import timm

    model = timm.create_model("test_resnet", num_classes=4).eval()  # its classifier is called fc
    torch.save(model.state_dict(), tmp_path / "net.pt")
    same_outputs(load(str(tmp_path / "net.pt"), arch="timm:test_resnet"), model)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {"model": s}])
def test_pt_state_dict_plain_or_nested(tmp_path, named_vit, wrap):
    torch.save(wrap(named_vit.state_dict()), tmp_path / "model.pt")
    same_outputs(load(str(tmp_path / "model.pt"), arch=ARCH, input_size=SIZE), named_vit)


def test_half_precision_weights_become_float32(tmp_path, named_vit):
    torch.save({k: v.half() for k, v in named_vit.state_dict().items()}, tmp_path / "model.pt")
    module = load(str(tmp_path / "model.pt"), arch=ARCH, input_size=SIZE).module
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_position_embeddings_are_resampled_to_another_input_size(weights):
    path = weights({"arch": ARCH})
    module = load(str(path), input_size=(64, 32)).module
    assert module.patch_embed.grid_size == (4, 2)
    assert module.pos_embed.shape[1] == 4 * 2 + module.num_prefix_tokens


def test_program_loads_with_the_input_size_it_was_traced_at(program_file, tiny_vit):
    checkpoint = load(str(program_file))
    assert checkpoint.preprocess.size == SIZE
    same_outputs(checkpoint, tiny_vit())


def test_trusted_pickle_of_a_module_takes_its_own_input_size(module_file, tiny_vit):
    checkpoint = load(str(module_file), trust_pickle=True)
    assert checkpoint.preprocess.size == SIZE
    same_outputs(checkpoint, tiny_vit())


def test_preprocess_file_overrides_metadata_and_input_size_overrides_both(weights, tmp_path):
    path = weights({"arch": ARCH, "preprocess": json.dumps(SQUASH)})
    other = tmp_path / "preprocess.json"
    other.write_text(json.dumps({"size": [64, 64], "mean": [0, 0, 0]}))
    checkpoint = load(str(path), preprocess=other, input_size=SIZE)
    assert checkpoint.preprocess.mean == (0, 0, 0)
    assert checkpoint.preprocess.resize == "shortest"
    assert checkpoint.preprocess.size == SIZE


def test_source_hash_is_that_of_the_file(weights):
    import hashlib

    path = weights({"arch": ARCH})
    assert load(str(path), input_size=SIZE).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# What is refused


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("absent.pt", "does not exist; MODEL is a file"),
        (".", "is a folder"),
        ("model.h5", "unknown ending '.h5'"),
        ("model.onnx", "corrupt, truncated or no ONNX file"),
        ("hf:", "write hf:FOLDER"),
        ("torchvision:vit_b_61", "did you mean vit_b_16"),
        ("timm:vit_tinny_patch16_224", "did you mean vit_tiny_patch16_224"),
    ],
)
def test_a_model_that_is_no_file_of_ours_is_told_what_is(refused, tmp_path, model, says):
    for name in ("model.h5", "model.onnx"):
        (tmp_path / name).write_bytes(b"x")
    assert says in refused(*export(model))


def test_pretrained_weights_without_a_network_say_how_to_use_a_file(refused, monkeypatch):
    import timm

    def create(*args, **kwargs):
        raise OSError("offline")  # what the hub client does without a network; its real retries take minutes

    monkeypatch.setattr(timm, "create_model", create)
    assert f"edgevit export FILE --arch {ARCH}" in refused(*export(ARCH))


def test_truncated_safetensors(refused, weights):
    path = weights({"arch": ARCH})
    path.write_bytes(path.read_bytes()[:-1000])
    assert "corrupt or truncated" in refused(*export(path))


@pytest.mark.parametrize("header", [b"", b"\xff" * 400, b"\x10\0\0\0\0\0\0\0{not json at all"])
def test_corrupt_safetensors(refused, tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(header)
    assert "copy or download it again" in refused(*export("model.safetensors"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [40, 0.5, 0.95])
def test_truncated_pt(refused, tmp_path, named_vit, zipped, keep):
    path = tmp_path / "model.pt"
    torch.save(named_vit.state_dict(), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: keep if keep > 1 else int(keep * len(data))])
    message = refused(*export(path, "--arch", ARCH))
    assert "corrupt" in message
    assert "--trust-pickle" not in message  # that would not help, and is no advice to give lightly


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"\xff\xd8\xff\xe0 a picture", b"this is text\n", b"<!DOCTYPE html>"]
)
@pytest.mark.parametrize("trust", [(), ("--trust-pickle",)])
def test_not_a_pytorch_file(refused, tmp_path, data, trust):
    (tmp_path / "model.pth").write_bytes(data)
    message = refused(*export("model.pth", "--arch", ARCH, *trust))
    assert "corrupt" in message
    assert "--trust-pickle" not in message


def test_pickled_module_needs_trust_and_the_error_says_so(refused, module_file):
    message = refused(*export(module_file))
    assert "unpickling runs code" in message
    assert "--trust-pickle" in message


def test_torchscript_is_named(refused, tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    assert "TorchScript archive; save the model's state dict" in refused(*export("model.pt"))


def test_bare_state_dict_needs_arch(refused, weights):
    assert "pass --arch timm:NAME" in refused(*export(weights()))


@pytest.mark.parametrize("arch", ["vit_tiny", "hf:x"])
def test_arch_that_is_not_timm(refused, weights, arch):
    assert "write timm:NAME" in refused(*export(weights(), "--arch", arch))


def test_wrong_architecture_names_the_first_five_keys_of_each_side(refused, weights):
    message = refused(*export(weights(), "--arch", "timm:test_vit"))
    assert "does not fit timm:test_vit" in message
    assert "is --arch right?" in message
    missing = message.split("missing (")[1].split(")")[0]
    assert missing == "cls_token"
    unexpected = message.split("unexpected (")[1].split(")")[0]
    assert unexpected.count(",") == 4
    assert unexpected.endswith("more")


def test_one_renamed_key_is_named_on_both_sides(refused, weights):
    path = weights({"arch": ARCH}, lambda state: state.update(nrom=state.pop("norm.weight")))
    message = refused(*export(path))
    assert "1 keys missing (norm.weight), 1 unexpected (nrom)" in message


def test_wrong_shape_names_both_shapes(refused, weights):
    path = weights({"arch": ARCH}, lambda state: state.update({"norm.weight": torch.ones(5)}))
    assert "norm.weight is [5], the model has [96]" in refused(*export(path, "--input-size", 32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(refused, weights, value):
    path = weights({"arch": ARCH}, lambda state: state["norm.weight"].fill_(value))
    assert "NaN or infinite weights in norm.weight" in refused(*export(path, "--input-size", 32))


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"num_classes": "many"}, "not a whole number"),
        ({"num_classes": "-3"}, "not a whole number"),
        ({"preprocess": "{"}, "not valid JSON"),
        ({"preprocess": "[]"}, "must be a JSON object"),
    ],
)
def test_bad_metadata(refused, weights, metadata, says):
    assert says in refused(*export(weights({"arch": ARCH, **metadata}), "--input-size", 32))


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {0: torch.ones(1)}, [torch.ones(1)], torch.ones(1)])
def test_a_file_without_a_state_dict(refused, tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    message = refused(*export("model.pt", "--arch", ARCH))
    assert "state dict" in message


def test_trusted_pickle_of_code_that_is_not_here(refused, tmp_path, monkeypatch):
    import sys
    import types

    from torch import nn

    elsewhere = types.ModuleType("their_code")
    elsewhere.Theirs = type("Theirs", (nn.Linear,), {"__module__": "their_code"})
    monkeypatch.setitem(sys.modules, "their_code", elsewhere)
    torch.save(elsewhere.Theirs(2, 2), tmp_path / "model.pt")
    monkeypatch.delitem(sys.modules, "their_code")
    assert "not importable here" in refused(*export("model.pt", "--trust-pickle"))


# Programs


def test_program_of_another_input_size(refused, program_file):
    message = refused(*export(program_file, "--input-size", 64))
    assert "[1, 3, 32, 32]" in message
    assert "[1, 3, 64, 64]" in message


def test_preprocessing_of_another_size_than_the_model_can_take(refused, module_file, tmp_path):
    (tmp_path / "p.json").write_text('{"size": [64, 64]}')
    message = refused(*export(module_file, "--trust-pickle", "--preprocess", "p.json"))
    assert "(32, 32)" in message
    assert "(64, 64)" in message


@pytest.mark.parametrize("text", ["{", "[]", '{"size": 32}', '{"size": [32]}', '{"sise": [1, 1]}', "\x80"])
def test_bad_preprocess_file(refused, program_file, tmp_path, text):
    (tmp_path / "p.json").write_text(text, encoding="latin-1")
    assert "preprocess" in refused(*export(program_file, "--preprocess", "p.json"))


def test_absent_preprocess_file(refused, program_file):
    assert "cannot read --preprocess absent.json" in refused(*export(program_file, "--preprocess", "absent.json"))


class TwoOutputs(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3)), images.sum((2, 3))


def test_program_with_two_outputs(refused, tmp_path):
    torch.export.save(torch.export.export(TwoOutputs(), (torch.zeros(1, 3, 32, 32),)), tmp_path / "model.pt2")
    assert "gives 2 outputs" in refused(*export("model.pt2"))


def test_program_that_takes_no_image(refused, tmp_path):
    program = torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),))
    torch.export.save(program, tmp_path / "model.pt2")
    assert "must take one image tensor [B, 3, H, W]" in refused(*export("model.pt2"))


def test_dynamic_program(refused, tmp_path):
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(
        torch.nn.Conv2d(3, 4, 8), (torch.zeros(2, 3, 32, 32),), dynamic_shapes={"input": {0: batch}}
    )
    torch.export.save(program, tmp_path / "model.pt2")
    assert "export it again with static" in refused(*export("model.pt2"))


def test_program_of_a_batch_is_exported_with_it(cli, tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    torch.export.save(torch.export.export(model.eval(), (torch.zeros(4, 3, 8, 8),)), tmp_path / "model.pt2")
    assert cli(*export("model.pt2", "--batch", 4)).code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["input"]["shape"] == [4, 3, 8, 8]
    assert manifest["schedule"]["macs"]["dense"] == 3 * 8 * 8 * 10  # of one image


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9])
def test_truncated_program(refused, tmp_path, program_file, keep):
    data = program_file.read_bytes()
    (tmp_path / "model.pt2").write_bytes(data[: keep if keep >= 1 else int(keep * len(data))])
    assert "corrupt or no torch.export archive" in refused(*export("model.pt2"))


def rewrite_archive(source, target, change):
    """Copy an archive; `change(name, data)` gives new data, or None to leave the entry out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)


def test_program_whose_graph_is_damaged(refused, tmp_path, program_file):
    for number, change in enumerate(
        (
            lambda name, data: b"{}" if "/models/" in name else data,
            lambda name, data: b"not json" if "/models/" in name else data,
            lambda name, data: None if "/models/" in name else data,
            lambda name, data: None if name.endswith("weight_0") else data,
        )
    ):
        rewrite_archive(program_file, tmp_path / f"{number}.pt2", change)
        assert "corrupt or no torch.export archive" in refused(*export(f"{number}.pt2"))


class Touch:
    """Unpickling this makes a folder: a stand-in for any code."""

    def __reduce__(self):
        return os.mkdir, ("pickled-code-ran",)


def test_program_with_pickled_sample_inputs_runs_no_code(refused, tmp_path, program_file):
    torch.save(((Touch(),), {}), tmp_path / "payload")
    payload = (tmp_path / "payload").read_bytes()
    rewrite_archive(program_file, tmp_path / "model.pt2", lambda n, d: payload if "/sample_inputs/" in n else d)
    assert "pass --trust-pickle if you trust its author" in refused(*export("model.pt2"))
    assert not (tmp_path / "pickled-code-ran").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"torch.ops.aten.conv2d.default", b"torch.serialization.load"),
        (b"torch.ops.aten.conv2d.default", b"torch.ops.load_library"),
        (b"torch.ops.aten.conv2d.default", b"math.sqrt"),
        (b'"range_constraints": {}', b'"range_constraints": {"x": {"expr_str": "__import__(\'os\')"}}'),
    ],
)
def test_program_that_calls_more_than_operators_runs_no_code(refused, tmp_path, program_file, old, new):
    def change(name, data):
        if "/models/" not in name:
            return data
        assert old in data
        return data.replace(old, new)

    rewrite_archive(program_file, tmp_path / "model.pt2", change)
    assert "can run code from the file" in refused(*export("model.pt2"))


def test_program_with_a_compiled_library_is_refused(refused, tmp_path, program_file):
    rewrite_archive(program_file, tmp_path / "model.pt2", lambda name, data: data)
    with zipfile.ZipFile(tmp_path / "model.pt2", "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/data/aotinductor/model/code.so", b"")
    assert "holds data/aotinductor/model/code.so" in refused(*export("model.pt2"))


def test_pickled_tensors_in_a_program_are_refused(refused, tmp_path, program_file):
    def change(name, data):
        return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1) if "weights_config" in name else data

    rewrite_archive(program_file, tmp_path / "model.pt2", change)
    assert "holds pickled tensors" in refused(*export("model.pt2"))

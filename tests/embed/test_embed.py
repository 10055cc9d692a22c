"""`edgevit embed`: what it writes, weighs and refuses, for any app."""

import json

import numpy as np
import pytest
from PIL import Image

from edgevit.embed import APPS
from edgevit.embed import app as find
from edgevit.embed.golden import images, sizes, write_golden
from edgevit.errors import EmbedError
from edgevit.preprocess import RESIZES, Preprocess
from tests.embed.conftest import change


@pytest.mark.parametrize("resize", RESIZES)
def test_golden_vectors_are_the_exact_tensors(tmp_path, resize):
    spec = Preprocess(size=(24, 40), resize=resize)
    write_golden(spec, tmp_path / "golden", "png")
    index = json.loads((tmp_path / "golden/golden.json").read_text())
    assert len(index["vectors"]) == 8
    assert Preprocess.from_dict(index["preprocess"]) == spec
    for vector in index["vectors"]:
        got = np.fromfile(tmp_path / "golden" / vector["tensor"], "<f4").reshape(index["shape"])
        assert np.array_equal(got, spec.tensor(Image.open(tmp_path / "golden" / vector["image"])))


def test_golden_images_are_the_same_every_time_and_hold_every_value():
    spec = Preprocess(size=(24, 40))
    first, second = images(spec), images(spec)
    assert [i.size for i in first] == sizes(spec)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
    assert len(set(first[-1].tobytes())) == 256


def test_every_app_resolves_and_a_misspelt_one_gets_a_hint():
    assert [find(name).name for name in APPS] == list(APPS)
    with pytest.raises(EmbedError, match=r"unknown app 'pyhton' \(did you mean python\?\)"):
        find("pyhton")


@pytest.mark.slow
def test_embed_prints_what_each_part_weighs(cli, demo_bundle, tmp_path):
    bundle = demo_bundle("ort", "fp32", "tome:r=10")
    result = cli("embed", bundle.folder, "--app", "python", "-o", "app", "--json")
    assert result.code == 0
    sizes = result.json["size_bytes"]
    assert sizes["engine"] == bundle.size_bytes + (bundle.folder / "manifest.json").stat().st_size
    assert 5e3 < sizes["loader"] < 5e4
    assert sizes["runtime"] > 1e7  # onnxruntime's libraries
    assert sizes["golden"] > 8 * 4 * 3 * 96 * 96
    again = cli("embed", bundle.folder, "--app", "python", "-o", "app")
    assert again.code == 1
    assert "app exists; give another -o, or --force" in again.message
    forced = cli("embed", bundle.folder, "--app", "python", "-o", "app", "--force")
    assert forced.code == 0
    assert [line.split()[0] for line in forced.out.splitlines()] == ["engine", "loader", "runtime", "golden"]


def test_force_replaces_no_folder_that_is_not_an_app(refused, demo_bundle, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("x")
    bundle = demo_bundle("ort", "fp32", "tome:r=10").folder
    message = refused("embed", bundle, "--app", "python", "-o", "home", "--force")
    assert "home exists and is no app; --force replaces apps only" in message


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda m: m.update(target="trt"), "is for trt: export the model with --target ort"),
        (lambda m: m["input"].update(shape=[2, 3, 96, 96]), "takes 2 images at once; export it"),
        (lambda m: m["output"].update(shape=[1, 10, 4]), "a classifier [1, classes]"),
        (lambda m: m["preprocess"].update(size=[64, 64]), "its preprocessing makes [64, 64]"),
        (lambda m: m.update(schema=9), "has schema 9"),
    ],
)
def test_a_bundle_that_no_app_can_run_is_refused(refused, demo_bundle, tmp_path, edit, line):
    import shutil

    spoilt = shutil.copytree(demo_bundle("ort", "fp32", "tome:r=10").folder, tmp_path / "b")
    change(spoilt, edit)
    assert line in refused("embed", spoilt, "--app", "python", "-o", "app")

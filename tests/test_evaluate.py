"""Accuracy of engines, against an independent computation with the eager model."""

import shutil

import numpy as np
import pytest
import torch

from edgevit.bundle import Bundle
from edgevit.data import open_image, read_dataset
from edgevit.evaluate import Evaluation, compare, evaluate


def eager_scores(model, bundle, files) -> np.ndarray:
    """`[images, classes]` of the eager model, one image at a time."""
    images = [torch.from_numpy(bundle.preprocess.tensor(open_image(f))) for f in files]
    with torch.no_grad():
        return np.stack([model(image[None])[0].numpy() for image in images])


@pytest.fixture
def export(cli, tmp_path):
    """Factory: a tiny ViT with this seed as a bundle of the fake target."""

    def build(model, name, *more):
        torch.save(model, tmp_path / f"{name}.pt")
        done = cli("export", f"{name}.pt", "--trust-pickle", "--target", "fake", "-o", name, *more)
        assert done.code == 0, done.err
        return Bundle.load(tmp_path / name)

    return build


def test_top1_and_top5_are_those_of_the_eager_model(fake_bundle, tiny_vit, pictures, labelled):
    bundle = Bundle.load(fake_bundle)
    order = eager_scores(tiny_vit(), bundle, pictures.files).argsort(1)[:, ::-1]
    places = [0, 0, 0, 0, 1, 1, 4, 4, 5, 9]  # where the true class shall stand: 4 right, 8 within five
    labels = [int(order[i, place]) for i, place in enumerate(places)]
    found = evaluate(bundle, read_dataset(labelled(labels)))
    assert found.ranks == tuple(places)
    assert found.predicted == tuple(order[:, 0])
    scores = eager_scores(tiny_vit(), bundle, pictures.files)
    others = [max(np.delete(row, label)) for row, label in zip(scores, labels, strict=True)]
    assert found.margins == pytest.approx([s[i] - o for s, i, o in zip(scores, labels, others, strict=True)], abs=1e-5)
    result = found.to_json()
    assert (result["images"], result["top1"], result["top5"]) == (10, 40.0, 80.0)
    assert result["top1_se"] == pytest.approx(100 * (0.4 * 0.6 / 10) ** 0.5)
    assert result["seconds"] > 0


def test_the_batch_does_not_change_the_result(export, tiny_vit, pictures):
    data = read_dataset(pictures.csv)
    one, four = (
        export(tiny_vit(), "one"),
        export(tiny_vit(), "four", "--batch", 4),
    )  # 10 images: the last batch is padded
    assert four.manifest["input"]["shape"] == [4, 3, 32, 32]
    first, second = evaluate(one, data), evaluate(four, data)
    assert first.predicted == second.predicted
    assert first.ranks == second.ranks


def test_against_counts_paired_flips(cli, export, tiny_vit, pictures, labelled):
    ours, theirs = export(tiny_vit(seed=0), "ours"), export(tiny_vit(seed=1), "theirs")
    a = eager_scores(tiny_vit(seed=0), ours, pictures.files).argmax(1)
    b = eager_scores(tiny_vit(seed=1), theirs, pictures.files).argmax(1)
    assert (a != b).sum() >= 6, "the two models must differ for this test to mean anything"
    labels = [int(a[i]) if i % 3 else int(b[i]) for i in range(10)]
    result = cli("eval", "ours", "--data", labelled(labels), "--against", "theirs", "--json").json
    right_a, right_b = a == labels, b == labels
    assert result["results"][0]["top1"] == 100 * right_a.mean()
    against = result["against"]
    assert against["bundle"] == "theirs"
    assert against["top1"] == 100 * right_b.mean()
    assert against["agreement"] == 100 * (a == b).mean()
    assert against["flips_lost"] == (right_b & ~right_a).sum() > 0
    assert against["flips_won"] == (right_a & ~right_b).sum() > 0


def test_a_bundle_against_itself_has_no_flips(cli, fake_bundle, pictures):
    against = cli("eval", fake_bundle, "--data", pictures.csv, "--against", fake_bundle, "--json").json["against"]
    assert (against["agreement"], against["flips_lost"], against["flips_won"]) == (100, 0, 0)


def test_a_flip_between_two_wrong_classes_is_disagreement_but_no_loss():
    ours, theirs = Evaluation("a", (1, 2), (3, 0), 1.0), Evaluation("b", (4, 2), (5, 0), 1.0)
    found = compare(ours, theirs)
    assert (found["agreement"], found["flips_lost"], found["flips_won"]) == (50, 0, 0)


def test_an_engine_that_gives_one_constant_is_right_for_one_class_only(fake_bundle, pictures, monkeypatch):
    from edgevit.runtimes.fake import FakeSession

    monkeypatch.setattr(FakeSession, "run", lambda self, images: np.zeros((1, 10), np.float32))
    found = evaluate(Bundle.load(fake_bundle), read_dataset(pictures.csv))
    assert found.ranks == tuple(range(10))
    assert found.top1 == 10


def test_class_folders_give_the_same_accuracy_as_the_csv(cli, fake_bundle, pictures):
    results = [
        cli("eval", fake_bundle, "--data", d, "--json").json["results"][0] for d in (pictures.csv, pictures.folder)
    ]
    assert results[0]["top1"] == results[1]["top1"]


def test_output_that_is_no_class_score_is_refused(refused, export, tmp_path, pictures):
    export(torch.nn.Sequential(torch.nn.Conv2d(3, 10, 8, 8)), "maps", "--input-size", "32")
    assert "accuracy needs [batch, classes]" in refused("eval", "maps", "--data", pictures.csv)


def test_engine_with_outputs_that_are_not_finite_is_refused(refused, fake_bundle, pictures, monkeypatch):
    from edgevit.runtimes.fake import FakeSession

    monkeypatch.setattr(FakeSession, "run", lambda self, images: np.full((1, 10), np.nan, np.float32))
    assert "gives NaN or infinite outputs for 0.jpg" in refused("eval", fake_bundle, "--data", pictures.csv)


def test_several_bundles_on_the_same_images(cli, tmp_path, fake_bundle, pictures):
    shutil.copytree(fake_bundle, tmp_path / "copy")
    results = cli("eval", fake_bundle, "copy", "--data", pictures.csv, "--json").json["results"]
    assert [r["bundle"] for r in results] == [fake_bundle.name, "copy"]
    assert results[0]["top1"] == results[1]["top1"]


@pytest.mark.assets
@pytest.mark.slow
def test_real_weights_on_real_photographs(assets, cli, tmp_path):
    """The reference result of these weights and images in PyTorch is 88.62 % (709 of 800)."""
    model = assets / "vit_tiny" / "model.safetensors"
    assert cli("export", model, "--target", "ort", "-o", "dense").code == 0
    data = assets / "imagenet_like" / "eval.csv"
    result = cli("eval", "dense", "--data", data, "--json").json["results"][0]
    assert result["images"] == 800
    assert result["top1"] == pytest.approx(88.62, abs=0.26)  # two images may round to another class

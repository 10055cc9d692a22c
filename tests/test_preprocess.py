"""Image → tensor."""

import json

import numpy as np
import pytest
from PIL import Image

from edgevit.errors import LoadError
from edgevit.preprocess import Preprocess

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def gradient(height: int, width: int) -> Image.Image:
    """Red rises to the right, green downwards, blue is flat."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = 100
    return Image.fromarray(pixels)


def test_squash_shows_the_whole_image_in_exactly_the_size():
    got = Preprocess(size=(20, 30), resize="squash", **PLAIN).tensor(gradient(90, 60))
    assert got.shape == (3, 20, 30)
    assert got.dtype == np.float32
    assert got[0, 10, 0] < 0.05 < 0.95 < got[0, 10, -1]  # both ends of the ramp are still there
    assert got[1, 0, 15] < 0.05 < 0.95 < got[1, -1, 15]


def test_shortest_crops_the_centre_and_keeps_the_aspect():
    got = Preprocess(size=(32, 32), resize="shortest", crop_pct=1.0, **PLAIN).tensor(gradient(64, 128))
    assert got.shape == (3, 32, 32)
    # the middle half of the width remains: red from 1/4 to 3/4, green over its whole range
    assert got[0, 16, 0] == pytest.approx(0.25, abs=0.02)
    assert got[0, 16, -1] == pytest.approx(0.75, abs=0.02)
    assert got[1, 0, 16] < 0.05 < 0.95 < got[1, -1, 16]


def test_crop_pct_is_the_share_of_the_short_side_that_remains():
    got = Preprocess(size=(32, 32), resize="shortest", crop_pct=0.5, **PLAIN).tensor(gradient(128, 128))
    assert got[0, 16, 0] == pytest.approx(0.25, abs=0.02)
    assert got[0, 16, -1] == pytest.approx(0.75, abs=0.02)


def test_squash_crop_squashes_first_and_crops_the_centre():
    got = Preprocess(size=(32, 32), resize="squash_crop", crop_pct=0.5, **PLAIN).tensor(gradient(64, 256))
    assert got.shape == (3, 32, 32)
    for channel, ends in ((0, got[0, 16, [0, -1]]), (1, got[1, [0, -1], 16])):  # the middle half both ways
        assert ends == pytest.approx([0.25, 0.75], abs=0.02), channel


@pytest.mark.parametrize("shape", [(10, 500), (500, 10), (1, 1), (33, 32), (31, 32)])
@pytest.mark.parametrize("size", [(32, 32), (48, 16)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
def test_any_image_gives_exactly_the_size_without_a_border(shape, size, crop_pct):
    image = Image.new("RGB", (shape[1], shape[0]), (255, 255, 255))
    got = Preprocess(size=size, crop_pct=crop_pct, **PLAIN).tensor(image)
    assert got.shape == (3, *size)
    assert (got == 1).all()  # a crop beyond the image would be black


def test_mean_and_std_are_per_channel_in_rgb_order():
    image = Image.new("RGB", (8, 8), (255, 0, 51))
    got = Preprocess(size=(8, 8), crop_pct=1.0, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 0.1)).tensor(image)
    np.testing.assert_allclose(got[:, 0, 0], [1.0, -1.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize("shape", [(75, 100), (100, 75), (90, 90)])
def test_agrees_with_timms_evaluation_transform(shape):
    """timm rounds as torchvision does; a pixel may be one level off where the crop falls on half a pixel."""
    from timm.data import create_transform

    image = gradient(*shape)
    theirs = create_transform((3, 32, 32), crop_pct=0.875, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    ours = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    np.testing.assert_allclose(ours.tensor(image), theirs(image).numpy(), atol=2 / 255 / 0.5)


def test_json_round_trip():
    spec = Preprocess(size=(20, 30), resize="squash", crop_pct=0.9, interpolation="lanczos", mean=(0.1, 0.2, 0.3))
    assert Preprocess.from_json(json.dumps(spec.to_dict()), "here") == spec


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": [32]}, "size"),
        ({"size": [0, 32]}, "size"),
        ({"size": [32.5, 32]}, "size"),
        ({"size": 32}, "must be lists"),
        ({"resize": "stretch"}, "squash, shortest"),
        ({"interpolation": "cubic"}, "bicubic"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"crop_pct": "0.9"}, "finite numbers"),
        ({"mean": [0.5]}, "three numbers"),
        ({"mean": ["a", "b", "c"]}, "finite numbers"),
        ({"std": [0.5, 0.5, 0]}, "std positive"),
        ({"std": [0.5, 0.5, float("nan")]}, "finite numbers"),
        ({"channels": "BGR"}, "only RGB"),
        ({"sise": 1}, "unknown keys ['sise']"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(change, says):
    with pytest.raises(LoadError) as error:
        Preprocess.from_dict({"size": [32, 32], **change})
    assert says in str(error.value)


def test_size_is_required():
    with pytest.raises(LoadError, match="needs size"):
        Preprocess.from_dict({})

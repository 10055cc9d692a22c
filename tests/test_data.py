"""DATA: CSV files and class folders, broken ones included. Errors go through the command line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.data import read_dataset
from edgevit.preprocess import Preprocess

SPEC = Preprocess(size=(32, 32))


@pytest.fixture
def evaluate(refused, fake_bundle):
    """Factory: `edgevit eval` on data that it must refuse."""
    return lambda data: refused("eval", fake_bundle, "--data", data)


def table(folder: Path, text: str) -> Path:
    path = folder / "data.csv"
    path.write_text(text)
    return path


def picture(path: Path, size=(40, 40)) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_csv_and_class_folders_of_the_same_images_are_the_same_data(pictures):
    by_csv, by_folder = read_dataset(pictures.csv), read_dataset(pictures.folder)
    assert [f.resolve() for f in by_csv.files] == list(pictures.files)
    assert by_csv.labels == by_folder.labels == pictures.labels
    assert by_folder.files == pictures.files


def test_csv_paths_are_relative_to_the_csv_not_to_the_current_folder(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(read_dataset(pictures.csv)) == len(pictures.files)


def test_csv_may_start_with_a_byte_order_mark_as_spreadsheets_write_it(tmp_path):
    picture(tmp_path / "a.png")
    assert read_dataset(table(tmp_path, "\ufefffile,label\na.png,3\n")).labels == (3,)


def test_batches_come_in_file_order_and_the_last_is_padded_with_its_last_image(pictures):
    data = read_dataset(pictures.csv)
    batches = list(data.tensors(SPEC, 4))
    assert [b.shape for b in batches] == [(4, 3, 32, 32)] * 3
    single = np.concatenate(list(data.tensors(SPEC, 1)))
    np.testing.assert_array_equal(np.concatenate(batches)[:10], single)
    np.testing.assert_array_equal(batches[2][2:], single[[9, 9]])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_image_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.open(picture(tmp_path / "rgb.png")).convert(mode).save(path)
    data = read_dataset(table(tmp_path, f"file,label\n{path.name},0\n"))
    assert next(data.tensors(SPEC, 1)).shape == (1, 3, 32, 32)


def test_absent_data(evaluate):
    assert "absent.csv does not exist; DATA is a CSV" in evaluate("absent.csv")


def test_empty_folder(evaluate, tmp_path):
    (tmp_path / "images").mkdir()
    assert "holds no class folders with images" in evaluate("images")


def test_folder_of_images_without_class_folders(evaluate, tmp_path):
    (tmp_path / "images").mkdir()
    picture(tmp_path / "images" / "a.png")
    assert "expected images/CLASS/image.jpg" in evaluate("images")


def test_csv_without_rows(evaluate, tmp_path):
    table(tmp_path, "file,label\n")
    assert "lists no images" in evaluate("data.csv")


@pytest.mark.parametrize(
    ("text", "columns"),
    [("", "file, label"), ("a.png,1\n", "file, label"), ("file,class\na.png,1\n", "label")],
)
def test_missing_column(evaluate, tmp_path, text, columns):
    table(tmp_path, text)
    assert f"has no column {columns}; its first line must name file and label" in evaluate("data.csv")


def test_binary_file_as_csv(evaluate, tmp_path):
    picture(tmp_path / "data.csv.png").rename(tmp_path / "data.csv")
    assert "is not a text file" in evaluate("data.csv")


def test_csv_with_nul_bytes(evaluate, tmp_path):
    table(tmp_path, "file,label\na\0.png,1\n")
    message = evaluate("data.csv")
    assert "data.csv" in message


@pytest.mark.parametrize("label", ["", "cat", "1.5", "1e3"])
def test_label_that_is_not_a_number_is_named_with_its_line(evaluate, tmp_path, label):
    picture(tmp_path / "a.png")
    table(tmp_path, f"file,label\na.png,1\na.png,{label}\n")
    assert f"line 3: label {label!r} is not a whole number" in evaluate("data.csv")


@pytest.mark.parametrize("label", [-1, 10])
def test_label_out_of_range(evaluate, tmp_path, label):
    picture(tmp_path / "a.png")
    table(tmp_path, f"file,label\na.png,9\na.png,{label}\n")
    message = evaluate("data.csv")
    assert f"label {label} of a.png" in message
    assert "labels are 0 to 9" in message


def test_listed_image_that_is_not_there(evaluate, tmp_path):
    table(tmp_path, "file,label\nimages/a.png,1\n")
    assert "images/a.png, which does not exist (paths are relative to the CSV's folder)" in evaluate("data.csv")


def test_empty_file_name(evaluate, tmp_path):
    table(tmp_path, "file,label\n,1\n")
    assert "line 2: the file name is empty" in evaluate("data.csv")


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.95])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
def test_truncated_image(evaluate, tmp_path, name, keep):
    data = picture(tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: keep if keep >= 1 else int(keep * len(data))])
    table(tmp_path, f"file,label\n{name},1\n")
    assert f"image {name} cannot be decoded" in evaluate("data.csv")


def test_corrupt_image(evaluate, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture at all")
    table(tmp_path, "file,label\na.jpg,1\n")
    assert "image a.jpg cannot be decoded" in evaluate("data.csv")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.bmp", "a.ppm"])
def test_random_damage_is_an_error_of_the_data_or_no_error(tmp_path, name):
    from edgevit.data import open_image
    from edgevit.errors import DataError

    generator = np.random.default_rng(1)
    whole = np.frombuffer(picture(tmp_path / name, (24, 24)).read_bytes(), np.uint8)
    outcomes = set()
    for _ in range(60):
        damaged = whole.copy()
        places = generator.integers(0, min(len(whole), 200), 6)  # headers, where decoders read sizes and types
        damaged[places] = generator.integers(0, 256, 6)
        (tmp_path / name).write_bytes(damaged.tobytes())
        try:
            open_image(tmp_path / name)
            outcomes.add("decoded")
        except DataError:
            outcomes.add("refused")
        except Warning:
            outcomes.add("warned")  # Pillow's own remark on a suspicious size; only these tests make it an error
    assert "refused" in outcomes

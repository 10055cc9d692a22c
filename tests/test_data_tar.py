"""DATA as WebDataset shards, broken and hostile ones included. Errors go through the command line."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.data import IMAGE_SUFFIXES, open_image, read_dataset
from edgevit.data_tar import index
from edgevit.errors import DataError
from edgevit.preprocess import Preprocess

SPEC = Preprocess(size=(32, 32))
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def encoded(pixels=PIXELS) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def shard(path: Path, *members: tuple[str, bytes | tarfile.TarInfo]) -> Path:
    """Write members in this order; a TarInfo stands for itself, without content."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.addfile(info)
    return path


def special(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, "0.png"
    return info


GOOD = (("0.png", encoded()), ("0.cls", b"3\n"))


@pytest.fixture
def shards(pictures, tmp_path):
    """The pictures in three shards of four, four and two samples, in a folder of their own."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        members = []
        for file, label in list(zip(pictures.files, pictures.labels, strict=True))[4 * number : 4 * number + 4]:
            members += [(f"val/{file.name}", file.read_bytes()), (f"val/{file.stem}.cls", str(label).encode())]
            members += [(f"val/{file.stem}.json", b"{}"), ("README", b"other members are ignored")]
        shard(folder / f"val-{number:06d}.tar", *members)
    return folder


@pytest.fixture
def evaluate(refused, fake_bundle):
    """Factory: `edgevit eval` on data that it must refuse."""
    return lambda data: refused("eval", fake_bundle, "--data", data)


def test_shards_give_the_same_tensors_and_labels_as_the_csv(pictures, shards):
    by_csv = read_dataset(pictures.csv)
    expected = list(by_csv.tensors(SPEC, 4))
    for data in (shards, shards / "val-{000000..000002}.tar"):
        found = read_dataset(data)
        assert found.labels == by_csv.labels
        for ours, theirs in zip(found.tensors(SPEC, 4), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert read_dataset(shards / "val-{000001..000001}.tar").labels == (4, 5, 6, 7)
    assert read_dataset(shards / "val-000002.tar").labels == (8, 9)


def test_shards_give_the_same_accuracy_as_the_csv(cli, pictures, shards, fake_bundle):
    results = [cli("eval", fake_bundle, "--data", d, "--json").json["results"][0] for d in (pictures.csv, shards)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def test_the_same_image_is_the_same_whatever_its_shard_is_called(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here, there = read_dataset(Path("shards/val-000000.tar")), read_dataset(shards)
    assert len({f.resolve() for f in here.files} & {f.resolve() for f in there.files}) == 4


def test_reading_many_shards_is_shown(shards):
    seen = []
    read_dataset(shards, lambda *what: seen.append(what))
    assert seen == [("read the index of shards", n, 3) for n in (1, 2, 3)]


def test_members_of_one_key_may_stand_apart_and_numbers_need_no_zeros(tmp_path):
    shard(tmp_path / "9.tar", ("a.cls", b"1"), ("b.cls", b"2"), ("b.PNG", encoded()), ("a.png", encoded()))
    shard(tmp_path / "10.tar", ("a.png", encoded()), ("a.cls", b"3"))
    assert read_dataset(tmp_path / "{9..10}.tar").labels == (2, 1, 3)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ((), "bad.tar holds no images"),
        ((*GOOD, ("1.png", encoded())), "bad.tar:1.png has no label; the shard must hold 1.cls"),
        ((*GOOD, ("1.cls", b"2")), "bad.tar: 1.cls has no image; known are .bmp"),
        ((*GOOD, ("0.jpg", encoded())), "bad.tar: 0.jpg is a second image of the key 0"),
        ((*GOOD, *GOOD), "bad.tar: 0.png is a second image of the key 0"),
        ((*GOOD, ("0.cls", b"3")), "bad.tar: 0.cls is a second label of the key 0"),
        ((GOOD[0], ("0.cls", b"cat")), "bad.tar: 0.cls holds b'cat', which is not a whole number"),
        ((GOOD[0], ("0.cls", b"")), "bad.tar: 0.cls holds b'', which"),
        ((GOOD[0], ("0.cls", b"9" * 1000)), "bad.tar: 0.cls holds 1000 bytes, which"),
        ((GOOD[0], ("0.cls", b"10")), "label 10 of bad.tar:0.png is out of range"),
        ((("0.png", b"no image"), GOOD[1]), "image bad.tar:0.png cannot be decoded (no known image format)"),
        ((("0.png", encoded()[:500]), GOOD[1]), "image bad.tar:0.png cannot be decoded"),
        ((*GOOD, ("/etc/1.png", encoded())), "bad.tar: /etc/1.png leaves the shard"),
        ((*GOOD, ("a/../../1.png", encoded())), "bad.tar: a/../../1.png leaves the shard"),
        ((*GOOD, ("a\n\x1b[2J.png", encoded())), r"bad.tar: the name 'a\n\x1b[2J.png' cannot be printed"),
        ((*GOOD, ("1.png", special(tarfile.SYMTYPE))), "bad.tar: 1.png is a link"),
        ((*GOOD, ("1.png", special(tarfile.LNKTYPE))), "bad.tar: 1.png is a link"),
        ((*GOOD, ("1.png", special(tarfile.CHRTYPE))), "bad.tar: 1.png is a link, a device"),
    ],
)
def test_a_shard_that_is_none_is_named_with_its_member(evaluate, tmp_path, members, expected):
    shard(tmp_path / "bad.tar", *members)
    assert expected in evaluate("bad.tar")


def test_a_shard_that_was_cut_off_is_refused_wherever(tmp_path):
    members = [(f"{i}.{kind}", content) for i in range(3) for kind, content in (("png", encoded()), ("cls", b"1"))]
    whole = shard(tmp_path / "whole.tar", *members).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # where the zeros of the end begin
    cut = tmp_path / "cut.tar"
    for length in [*range(0, end + 1, 512), 700, end - 700, end + 100]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar"):
            index(cut, IMAGE_SUFFIXES)
    cut.write_bytes(whole[: end + 512])
    assert len(index(cut, IMAGE_SUFFIXES)) == 3
    cut.write_bytes(whole + whole)
    with pytest.raises(DataError, match=r"goes on, after 2\.cls"):
        index(cut, IMAGE_SUFFIXES)


def test_random_damage_is_an_error_of_the_data_or_no_error(tmp_path):
    generator = np.random.default_rng(1)
    members = [(f"{'long/' * 30}{i}.{kind}", c) for i in range(2) for kind, c in (("png", encoded()), ("cls", b"1"))]
    whole = np.frombuffer(shard(tmp_path / "whole.tar", *members).read_bytes(), np.uint8)
    heads = np.concatenate([np.arange(i, i + 512) for i in range(0, len(whole), 512) if whole[i + 257] == ord("u")])
    path, outcomes = tmp_path / "damaged.tar", set()
    for _ in range(300):
        damaged = whole.copy()
        places = generator.choice(heads, 2)
        damaged[places] = generator.integers(0, 256, 2)
        for start in heads[::512]:  # with a checksum that holds, so that the damage is read
            damaged[start + 148 : start + 156] = ord(" ")
            total = int(damaged[start : start + 512].sum())
            damaged[start + 148 : start + 156] = np.frombuffer(b"%06o\0 " % total, np.uint8)
        path.write_bytes(damaged.tobytes())
        try:
            for member, _ in index(path, IMAGE_SUFFIXES):
                open_image(member)
            outcomes.add("read")
        except DataError as error:
            outcomes.add("refused" if str(error).isprintable() else str(error))
    assert outcomes == {"read", "refused"}


def test_a_negative_size_does_not_lead_back(tmp_path):
    path = shard(tmp_path / "bad.tar", *GOOD)
    data = bytearray(path.read_bytes())
    second = 512 + -(-len(GOOD[0][1]) // 512) * 512
    data[second + 124 : second + 136] = (-second - 512).to_bytes(12, "big", signed=True)
    data[second + 148 : second + 156] = b" " * 8
    data[second + 148 : second + 156] = b"%06o\0 " % sum(data[second : second + 512])
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"bad\.tar"):
        index(path, IMAGE_SUFFIXES)


@pytest.mark.parametrize(("count", "size"), [(5000, 0), (1, 1 << 40)])
def test_a_chain_of_long_names_or_one_without_end_is_refused(tmp_path, count, size):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    (tmp_path / "bad.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) * count + bytes(1024))
    with pytest.raises(DataError, match=r"bad\.tar cannot be read as a plain tar after its start"):
        index(tmp_path / "bad.tar", IMAGE_SUFFIXES)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("absent.tar", "absent.tar does not exist"),
        ("val-{0..2}.tar", "val-{0..2}.tar names val-1.tar, which does not exist"),
        ("val-{2..0}.tar", "val-{2..0}.tar names no shard: 2 comes after 0"),
        ("zip.tar", "zip.tar cannot be read as a plain tar after its start"),
        ("mixed", "mixed holds class folders and a.tar; give mixed/a.tar, or move it elsewhere"),
    ],
)
def test_names_that_are_no_shards(evaluate, tmp_path, data, expected):
    shard(tmp_path / "val-0.tar", *GOOD)
    with tarfile.open(tmp_path / "zip.tar", "w:gz"):
        pass
    (tmp_path / "mixed" / "cat").mkdir(parents=True)
    (tmp_path / "mixed" / "cat" / "0.png").write_bytes(encoded())
    shard(tmp_path / "mixed" / "a.tar", *GOOD)
    assert expected in evaluate(data)

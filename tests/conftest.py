"""Models, images and the command line for every test. Models are built here, nothing is downloaded."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgevit import cli as command_line

ROOT = Path(__file__).resolve().parents[1]
THREADS = 1  # tiny models gain nothing from two, and beside a busy process two wait for each other: 25 s for 2 s
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
torch.set_num_threads(THREADS)

CLASSES = 10
IMAGES = 10


@dataclass(frozen=True)
class Result:
    """What one command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The whole of standard output as one JSON object; anything else there is an error."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    @property
    def message(self) -> str:
        """The last line of standard error."""
        return self.err.splitlines()[-1]


def heed_interrupts() -> None:
    """In a new process: Ctrl-C or a hang-up ends it, also where the suite itself runs in a shell's background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, hidden names too, with size and time: what must not change."""
    return {
        str(p.relative_to(folder)): (
            p.stat().st_size if p.is_file() else 0,
            p.stat().st_mtime_ns if p.is_file() else 0,
        )
        for p in folder.rglob("*")
    }


def build_tiny_vit(seed: int = 0, depth: int = 2, **options):
    """A 32-pixel timm ViT with 16 patches and one class token, whose outputs depend on the image."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "num_classes": CLASSES}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = VisionTransformer(**{**sizes, "depth": depth, **options})
        for parameter in model.parameters():
            if parameter.ndim > 1:  # timm's own initialisation makes all images look alike
                parameter.normal_(0, 0.25)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_vit():
    """Factory: `tiny_vit(seed=0, depth=2, **options of timm's VisionTransformer)`."""
    return build_tiny_vit


@pytest.fixture(scope="session")
def program_file(tmp_path_factory) -> Path:
    """The tiny ViT as a `.pt2` program for one 32-pixel image."""
    path = tmp_path_factory.mktemp("program") / "tiny.pt2"
    torch.export.save(torch.export.export(build_tiny_vit(), (torch.zeros(1, 3, 32, 32),)), path)
    return path


@pytest.fixture(scope="session")
def module_file(tmp_path_factory) -> Path:
    """The tiny ViT as a pickled module, which has an adapter and loads with --trust-pickle."""
    path = tmp_path_factory.mktemp("module") / "tiny.pt"
    torch.save(build_tiny_vit(), path)
    return path


@dataclass(frozen=True)
class Pictures:
    """The same labelled images as a CSV and as class folders."""

    csv: Path
    folder: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Pictures:
    """Ten images of different sizes and formats, one of each class, to be decoded for real."""
    folder = tmp_path_factory.mktemp("pictures") / "classes"
    generator = np.random.default_rng(0)
    files = []
    for label in range(IMAGES):
        height, width = 36 + 3 * label, 60 - 2 * label
        ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
        noise = generator.integers(0, 256, (height, width, 3))
        pixels = ((label * ramp + (IMAGES - label) * noise) / IMAGES).astype(np.uint8)
        path = folder / f"class_{label}" / f"{label}.{'png' if label % 2 else 'jpg'}"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
        files.append(path)
    labels = tuple(range(IMAGES))
    table = write_csv(folder.parent / "data.csv", files, labels)
    return Pictures(table, folder, tuple(files), labels)


def write_csv(path: Path, files, labels) -> Path:
    """A CSV with columns file,label and one more that edgevit must ignore."""
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "note", "label"])
        rows.writerows(
            [os.path.relpath(file, path.parent), "x", label] for file, label in zip(files, labels, strict=True)
        )
    return path


@pytest.fixture
def labelled(tmp_path, pictures):
    """Factory: the pictures with other labels, as a CSV."""
    return lambda labels: write_csv(tmp_path / "labelled.csv", pictures.files, labels)


@pytest.fixture(scope="session", autouse=True)
def _own_history(tmp_path_factory):
    """What tests measure belongs in nobody's history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEVIT_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Factory: run one command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv) -> Result:
        capsys.readouterr()
        code = command_line.run([str(word) for word in argv])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(cli, tmp_path):
    """Factory: a command line that a user must fix. Checks the contract of errors and returns the one line.

    Every line on standard error starts with `edgevit: ` (the ones before the last are progress), standard output
    stays empty, and nothing in the working folder is added, changed or left behind.
    """

    def run(*argv, code: int = 1) -> str:
        before = contents(tmp_path)
        result = cli(*argv)
        assert result.code == code, result.err
        assert all(line.startswith("edgevit: ") for line in result.err.splitlines()), result.err
        assert result.out == ""
        assert contents(tmp_path) == before
        return result.message

    return run


@pytest.fixture(scope="session")
def fake_bundle(tmp_path_factory, program_file) -> Path:
    """The tiny ViT built for the target `fake`. Shared: copy it before changing it."""
    from edgevit.pipeline import ExportSettings, export

    out = tmp_path_factory.mktemp("bundle") / "tiny"
    export(ExportSettings(model=str(program_file), target="fake", out=out))
    return out


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real weights and labelled photographs, which are not part of the repository."""
    named = os.environ.get("EDGEVIT_ASSETS")
    path = Path(named) if named else ROOT.parent / "shared" / "assets"
    if not path.is_dir():
        pytest.skip(f"needs real weights and images: {path} does not exist; set EDGEVIT_ASSETS to their folder")
    return path

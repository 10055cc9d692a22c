"""What ends up in the wheel: every code folder, every data file, and no name of the machine it was made on."""

import importlib
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SIDE = ("export", "quant", "runtimes", "devices")
CODE = ("edgevit", *SIDE)
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = CONFIG["tool"]["setuptools"]


def import_name(folder: Path) -> str:
    parts = folder.relative_to(ROOT).parts
    return ".".join(("edgevit", *parts) if parts[0] in SIDE else parts)


def test_every_code_folder_is_packaged():
    inits = [path.parent for folder in CODE for path in (ROOT / folder).rglob("__init__.py")]
    assert set(SETUPTOOLS["packages"]) == {import_name(folder) for folder in inits}
    assert SETUPTOOLS["package-dir"] == {"edgevit": "edgevit"} | {f"edgevit.{name}": name for name in SIDE}


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for folder in CODE for path in (ROOT / folder).rglob("*.py")}
    assert [f for f in folders if not (f / "__init__.py").exists()] == []


def test_side_folders_stay_flat():
    nested = [p for name in SIDE for p in (ROOT / name).iterdir() if p.is_dir() and p.name != "__pycache__"]
    assert nested == []


def test_every_data_file_on_disk_is_packaged_and_every_packaged_one_exists():
    on_disk, packaged = set(), set()
    for name in SETUPTOOLS["packages"]:
        folder = Path(importlib.import_module(name).__file__).parent
        on_disk |= {p for p in folder.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc")}
        for pattern in SETUPTOOLS["package-data"].get(name, ()):
            found = set(folder.glob(pattern))
            assert found, f"{name} packages {pattern}, which matches nothing"
            packaged |= found
    assert packaged == on_disk


def test_every_package_imports_under_its_name():
    for name in SETUPTOOLS["packages"]:
        assert importlib.import_module(name).__name__ == name


def test_no_file_is_named_like_a_package_it_uses():
    taken = {
        "onnx",
        "onnxruntime",
        "openvino",
        "coreai",
        "executorch",
        "timm",
        "torch",
        "numpy",
        "rich",
        "safetensors",
        "types",
        "logging",
    }
    assert [p for folder in CODE for p in (ROOT / folder).rglob("*.py") if p.stem in taken] == []


def test_extras_that_errors_name_exist():
    """Every `edgevit[NAME]` that the code tells a user to type is an extra of this package."""
    from edgevit.runtimes import TARGETS, runtime

    extras = CONFIG["project"]["optional-dependencies"]
    assert {runtime(name).extra for name in TARGETS} <= set(extras)
    assert {"timm", "demo", "test", "all"} <= set(extras)


def tracked() -> list[Path]:
    """The repository's text files: what git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("needs the git checkout")
    return [ROOT / line for line in found.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_source_names_a_path_of_the_machine_it_was_written_on():
    # spelt in pieces, so that this file passes its own test
    places = ["/" + name + "/" for name in ("work", "tmp", "home", "root", "Users")]
    suffixes = {
        ".py",
        ".toml",
        ".md",
        ".json",
        ".txt",
        ".log",
        ".yml",
        ".yaml",
        ".html",
        ".svg",
        ".cfg",
        ".sh",
        "",
    }
    found = []
    for path in tracked():
        if path.suffix in suffixes:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [
                f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if any(p in line for p in places)
            ]
    assert found == []

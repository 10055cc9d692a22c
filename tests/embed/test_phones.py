"""The Swift and Kotlin apps: every file parses, and what their loaders cannot do is refused when they are written."""

import json
import re
import shutil

import pytest

from edgevit.embed.write import embed
from edgevit.errors import EmbedError
from tests.embed.conftest import change

GRAMMARS = {".swift": "tree_sitter_swift", ".kt": "tree_sitter_kotlin", ".kts": "tree_sitter_kotlin"}


VERSIONS = {"ort": "1.32.0", "executorch": "1.5.1+cpu", "coreml": "9.0", "coreai": "0.4.3 (coreai-core 1.0.0b3)"}
FILES = [("swift", "coreml", 9), ("swift", "coreai", 9), ("kotlin", "ort", 8), ("kotlin", "executorch", 8)]


def parsed(path):
    """The first line that does not parse; None where all do."""
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip(GRAMMARS[path.suffix])
    tree = tree_sitter.Parser(tree_sitter.Language(grammar.language())).parse(path.read_bytes())
    stack = [tree.root_node]
    while stack:
        node = stack.pop()
        if node.type == "ERROR" or node.is_missing:
            return f"{path.name}:{node.start_point[0] + 1}"
        stack += node.children
    return None


@pytest.fixture
def bundle(fake_bundle, tmp_path):
    """A bundle whose manifest says it is for a target: nothing of it is run here."""

    def get(target, **options):
        to = shutil.copytree(fake_bundle, tmp_path / target)
        version = {
            "ort": "1.32.0",
            "executorch": "1.5.1+cpu",
            "coreml": "9.0",
            "coreai": "0.4.3 (coreai-core 1.0.0b3)",
        }[target]
        change(to, lambda m: m.update(target=target, runtime={"name": target, "version": version, "options": options}))
        return to

    return get


@pytest.mark.parametrize(
    ("app", "target", "files"),
    [("swift", "coreml", 9), ("swift", "coreai", 9), ("kotlin", "ort", 8), ("kotlin", "executorch", 8)],
)
def test_every_file_parses(bundle, tmp_path, app, target, files):
    embed(bundle(target), app, tmp_path / "app")
    sources = [p for p in (tmp_path / "app").rglob("*") if p.suffix in GRAMMARS]
    assert len(sources) == files
    assert [found for found in map(parsed, sources) if found] == []
    assert not [p for p in sources if re.search("@[A-Z]+@", p.read_text())]


def test_a_file_that_does_not_parse_is_found(tmp_path):
    (tmp_path / "a.kt").write_text("fun f( {\n")
    (tmp_path / "a.swift").write_text("func f( {\n")
    assert parsed(tmp_path / "a.kt") == "a.kt:1"
    assert parsed(tmp_path / "a.swift") == "a.swift:1"


@pytest.mark.parametrize(("app", "target"), [("swift", "coreml"), ("kotlin", "ort")])
def test_a_filter_that_the_loader_does_not_have_is_refused(bundle, tmp_path, app, target):
    folder = bundle(target)
    change(folder, lambda m: m["preprocess"].update(interpolation="lanczos"))
    with pytest.raises(
        EmbedError, match=r"resizes by bilinear or bicubic, .* by lanczos; give the model a --preprocess"
    ):
        embed(folder, app, tmp_path / "app")
    assert not (tmp_path / "app").exists()


def test_the_android_library_has_the_version_that_was_checked(bundle, tmp_path):
    embed(bundle("executorch"), "kotlin", tmp_path / "app")
    assert '"org.pytorch:executorch-android:1.5.1"' in (tmp_path / "app/build.gradle.kts").read_text()
    index = json.loads((tmp_path / "app/golden/golden.json").read_text())
    assert len(index["vectors"]) == 8

"""docs/foreign-onnx-passes.md shows what the passes do."""

import runpy
from pathlib import Path

import pytest

from edgevit.from_onnx.clean import PASSES

ROOT = Path(__file__).resolve().parents[2]
DRAWING = runpy.run_path(str(ROOT / "tests" / "passes.py"))


def test_every_pass_has_a_picture():
    assert list(DRAWING["PICTURES"]) == list(PASSES)
    page = (ROOT / "docs" / "foreign-onnx-passes.md").read_text()
    assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")] == list(PASSES)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_does_what_its_picture_shows(name):
    picture, count = DRAWING["drawn"](name)
    assert count > 0
    page = (ROOT / "docs" / "foreign-onnx-passes.md").read_text()
    assert f"{DRAWING['section'](name, picture)}\n" in page, "the page is out of date; run make passes"

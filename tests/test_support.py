"""docs/support.md says what the code does: which methods run on which families, and why not."""

import runpy
from pathlib import Path

import pytest

from edgevit.tokens import METHODS

pytest.importorskip("timm")
SUPPORT = runpy.run_path(str(Path(__file__).with_name("support.py")))
FAMILIES, Cell, row, recorded = (SUPPORT[name] for name in ("families", "Cell", "row", "recorded"))
NAMES = list(FAMILIES())
RECORDED = {(cell.family, cell.method): cell for cell in recorded()}


def test_the_matrix_has_every_method_and_every_family():
    assert set(RECORDED) == {(family, method) for family in NAMES for method in METHODS}


@pytest.mark.parametrize("family", NAMES)
def test_a_family_accepts_and_refuses_as_recorded(family):
    cells = row(family, tuple(METHODS), export=False)
    assert {(c.family, c.method): c.reason for c in cells} == {
        key: cell.reason for key, cell in RECORDED.items() if key[0] == family
    }


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(len(METHODS)))
def test_recorded_exports_still_verify(turn):
    """Every method once, each on the next family that takes it: all methods, and nearly all families."""
    method = list(METHODS)[turn]
    able = [family for family in NAMES if not RECORDED[family, method].reason]
    assert able, f"{method} runs on no family"
    family = able[turn % len(able)]
    assert row(family, (method,)) == [Cell(family, method)]

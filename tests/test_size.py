"""One idea per file, and it fits on a screen. An exception is a line here with its reason."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("edgevit", "export", "quant", "runtimes", "devices")
FILE_LINES, FUNCTION_LINES = 300, 60

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}

FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def long_functions(path: Path) -> dict[str, int]:
    """Functions over the limit, with their lines; decorators and docstrings count."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if node.end_lineno - first + 1 > FUNCTION_LINES:
                found[f"{name(path)}:{node.name}"] = node.end_lineno - first + 1
    return found


def test_the_limits_see_the_code():
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_and_functions_are_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= FILE_LINES or name(path) in LONG_FILES, f"{name(path)} has {lines} lines"
    functions = long_functions(path)
    assert set(functions) <= set(LONG_FUNCTIONS), functions


def test_every_exception_is_still_needed():
    stale = [n for n in LONG_FILES if len((ROOT / n).read_text().splitlines()) <= FILE_LINES]
    stale += sorted(set(LONG_FUNCTIONS) - {f for path in FILES for f in long_functions(path)})
    assert stale == []

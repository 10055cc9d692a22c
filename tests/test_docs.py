"""Examples in docstrings run, under the names that users import."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SIDE = ("export", "quant", "runtimes", "devices")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("edgevit", *parts) if parts[0] in SIDE else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(p for name in ("edgevit", *SIDE) for p in (ROOT / name).rglob("*.py") if p.name != "__main__.py")
WITH_EXAMPLES = [p for p in FILES if ">>> " in p.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_name)
def test_examples_of_a_module_give_what_they_show(path):
    result = doctest.testmod(importlib.import_module(module_name(path)))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_public_names_resolve_and_are_documented():
    import edgevit

    for name in edgevit.__all__:
        found = getattr(edgevit, name)
        assert name == "__version__" or found.__doc__, name


def test_an_unknown_public_name_is_an_attribute_error():
    import edgevit

    with pytest.raises(AttributeError, match="nonsense"):
        edgevit.nonsense  # noqa: B018 (the access is the test)

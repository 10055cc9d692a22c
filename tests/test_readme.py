import re
import shlex
from pathlib import Path

import pytest

from edgevit.cli import parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command_lines():
    """Every `edgevit ...` line of a code block, with the page it stands on."""
    for page in PAGES:
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("edgevit "):
                    words = shlex.split(line, comments=True)
                    yield pytest.param(words[1:], id=f"{page.name}: {' '.join(words[1:])[:70]}")


@pytest.mark.parametrize("words", list(command_lines()))
def test_documented_command_parses(words):
    if "|" in words:
        pytest.skip("a synopsis, not a command")
    assert parser(words[0]).parse_args(words).verb == words[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_every_make_target_of_the_readme_exists():
    named = set(re.findall(r"^make (\w[\w-]*)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE))
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert named
    assert named <= rules

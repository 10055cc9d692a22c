"""Tables of pages in docs/ that a command makes."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
END = "<!-- end of table -->"


def standing(page: str, maker: str) -> str:
    """The table that stands in docs/PAGE behind `<!-- table: MAKER -->`."""
    return (ROOT / "docs" / page).read_text().split(f"<!-- table: {maker} -->\n")[1].split(f"\n{END}")[0]


def fill(page: str, maker: str, text: str) -> None:
    """Put a table where docs/PAGE has `<!-- table: MAKER -->`, in place of the one that stands there."""
    path, begin = ROOT / "docs" / page, f"<!-- table: {maker} -->"
    before, rest = path.read_text().split(begin)
    path.write_text(f"{before}{begin}\n{text}\n{END}{rest.split(END, 1)[1]}")

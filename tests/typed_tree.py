"""Lay the packages out as they are imported, by links: a tree that mypy can follow.

`python tests/typed_tree.py DIR` makes DIR/edgevit with export, quant, runtimes and devices inside it.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIDE = ("export", "quant", "runtimes", "devices")


def main(folder: Path) -> None:
    """Link every package into `folder`."""
    package = folder / "edgevit"
    package.mkdir(parents=True)
    for path in (ROOT / "edgevit").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for name in SIDE:
        (package / name).symlink_to(ROOT / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

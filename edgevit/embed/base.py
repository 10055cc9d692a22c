"""What an app must offer, and what every app is given."""

from __future__ import annotations

from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Protocol

from edgevit.errors import EmbedError

if TYPE_CHECKING:
    from edgevit.bundle import Bundle

BUNDLE, GOLDEN = "bundle", "golden"
RUNTIME = "ort"
"""The folder of a bundle that carries its runtime, which is no part of the engine (target web)."""


class App(Protocol):
    """One kind of app: its files around a copy of the bundle and the golden vectors."""

    name: str
    targets: tuple[str, ...]
    """Whose bundles it runs."""
    images: str
    """Suffix of the golden images: one the platform decodes without loss and without help."""

    def write(self, bundle: Bundle, folder: Path, key: str | None) -> None:
        """Write the loader into `folder`, which holds the bundle and the golden vectors. Raises EmbedError.

        key: public ed25519 key, 64 hexadecimal digits, that must have signed what the loader takes.
        """

    def runtime_bytes(self, bundle: Bundle) -> int | None:
        """Size of the runtime the app needs; None where this machine does not have it."""


def check_filter(app: str, bundle: Bundle) -> None:
    """Raise EmbedError where the loaders for phones, which have two filters, lack the manifest's."""
    asked = bundle.preprocess.interpolation
    if asked not in ("bilinear", "bicubic"):
        raise EmbedError(
            f"a {app} app resizes by bilinear or bicubic, {bundle.name} by {asked}; give the model a --preprocess with "
            "one of them, evaluate it, and export it again"
        )


def template(package: str, name: str, **marks: str) -> str:
    """Text of a template; `@NAME@` in it becomes the value given as NAME."""
    text = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    for mark, value in marks.items():
        text = text.replace(f"@{mark}@", value)
    return text


def write_text(path: Path, text: str) -> None:
    """Write with the line ends of every platform's tools, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def write_readme(package: str, bundle: Bundle, folder: Path, **values: str) -> None:
    """README.md from the template's: `$model`, `$target`, `$precision` and `values`; an unknown name is an error."""
    known = {key: bundle.manifest[key] for key in ("target", "precision")}
    text = Template(template(package, "README.md")).substitute(known, model=bundle.manifest["model"]["name"], **values)
    write_text(folder / "README.md", text)


def installed_bytes(package: str) -> int | None:
    """Bytes of an installed Python package's own files; None where it is not installed."""
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(f.locate())) for f in files]
    return sum(p.stat().st_size for p in paths if p.is_file())

"""BUNDLE → app folder: the bundle as it is, golden vectors, loader; and what each part weighs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.bundle import MANIFEST, Bundle, staged
from edgevit.embed import app as find_app
from edgevit.embed.base import BUNDLE, GOLDEN, RUNTIME, App
from edgevit.embed.golden import write_golden
from edgevit.errors import EmbedError
from edgevit.signing import private_key, public_hex, sign


@dataclass(frozen=True)
class Embedded:
    """An app folder and the bytes of its parts; runtime_bytes: None where this machine does not have the runtime."""

    folder: Path
    app: str
    target: str
    engine_bytes: int
    loader_bytes: int
    test_bytes: int
    runtime_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """The keys of `edgevit embed --json`."""
        return {
            "folder": str(self.folder),
            "app": self.app,
            "target": self.target,
            "size_bytes": {
                "engine": self.engine_bytes,
                "loader": self.loader_bytes,
                "runtime": self.runtime_bytes,
                "golden": self.test_bytes,
            },
        }


def embed(source: Path, name: str, out: Path, force: bool = False, key: Path | None = None) -> Embedded:
    """Write the app. key: signs the bundle, and the app takes no other. Raises BundleError, EmbedError, MissingExtra.

    On any failure nothing is left at `out`.
    """
    app = find_app(name)
    bundle = Bundle.load(source)
    check(app, bundle)
    private = private_key(key) if key else None
    with staged(out, force, f"{BUNDLE}/{MANIFEST}", "app") as folder:
        copy_bundle(bundle, folder / BUNDLE)
        if private:
            sign(folder / BUNDLE, private)
        write_golden(bundle.preprocess, folder / GOLDEN, app.images)
        app.write(bundle, folder, public_hex(private) if private else None)
        total, inside, tests = (_bytes(folder / part) for part in ("", BUNDLE, GOLDEN))
        engine = inside - _bytes(folder / BUNDLE / RUNTIME)
    target, runtime = bundle.manifest["target"], app.runtime_bytes(bundle)
    return Embedded(out, name, target, engine, total - inside - tests, tests, runtime)


def check(app: App, bundle: Bundle) -> None:
    """Raise EmbedError for a bundle that this app cannot run."""
    target, shape, output = (bundle.manifest[key] for key in ("target", "input", "output"))
    if target not in app.targets:
        raise EmbedError(
            f"a {app.name} app runs bundles for {', '.join(app.targets)}; {bundle.name} is for {target}: export the "
            f"model with --target {app.targets[0]}"
        )
    if shape["shape"][0] != 1:
        raise EmbedError(f"{bundle.name} takes {shape['shape'][0]} images at once; export it without --batch")
    if len(output["shape"]) != 2:
        raise EmbedError(f"{bundle.name} gives outputs {output['shape']}, a classifier [1, classes]")
    if list(shape["shape"][2:]) != list(bundle.preprocess.size):
        raise EmbedError(
            f"{bundle.name} takes {shape['shape']}, its preprocessing makes {list(bundle.preprocess.size)}; "
            "export it again"
        )


def copy_bundle(bundle: Bundle, to: Path) -> None:
    """The manifest and the files it names; what was measured here stays here."""
    for name in (MANIFEST, *bundle.manifest["files"]):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, to / name)


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())

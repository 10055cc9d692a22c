"""App `web`: a static page around a web bundle, verified by its service worker."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.bundle import MANIFEST
from edgevit.embed.base import BUNDLE, RUNTIME, template, write_readme, write_text
from edgevit.hashes import sha256_file
from edgevit.signing import SIGNATURE

if TYPE_CHECKING:
    from edgevit.bundle import Bundle

TEMPLATES = "edgevit.embed.app_web"
PAGE = ("index.html", "page.css", "page.js", "classifier.js", "verified.js")
# The bundle's own page and its test mode: this app has a page of its own.
UNUSED = ("index.html", "page.js", "check.js")


class Web:
    """Page, service worker, and the bundle's own worker and preprocessing."""

    name = "web"
    targets = ("web",)
    images = "png"

    def write(self, bundle: Bundle, folder: Path, key: str | None) -> None:
        """The page, and the service worker with the hash of every file it may serve."""
        for name in PAGE:
            write_text(folder / name, template(TEMPLATES, name))
        served = [*PAGE, f"{BUNDLE}/{MANIFEST}"]
        served += [f"{BUNDLE}/{name}" for name in bundle.manifest["files"] if name not in UNUSED]
        served += [f"{BUNDLE}/{SIGNATURE}"] if key else []
        files = json.dumps({name: sha256_file(folder / name) for name in served}, indent=2)
        cache = f"classifier-{hashlib.sha256(files.encode()).hexdigest()[:16]}"
        write_text(folder / "sw.js", template(TEMPLATES, "sw.js", FILES=files, CACHE=cache, KEY=key or ""))
        write_readme(TEMPLATES, bundle, folder)

    def runtime_bytes(self, bundle: Bundle) -> int | None:
        """onnxruntime-web's files, which lie in the bundle."""
        return sum(p.stat().st_size for p in (bundle.folder / RUNTIME).iterdir())

"""The runner app as a project for Xcode: written here, signed and installed once on a Mac."""

from __future__ import annotations

import re
from pathlib import Path

from edgevit.bundle import staged
from edgevit.devices.ios_usb import BUNDLE
from edgevit.embed.base import template, write_text
from edgevit.errors import MeasureError

TEMPLATES = "edgevit.runner_ios"
SOURCES = ("App.swift", "CoreAIEngine.swift", "Engines.swift", "Facts.swift", "Job.swift", "Round.swift")
PROJECT = "Runner.swiftpm"
TEAM = re.compile(r"[A-Z0-9]{10}|")


def write_app(folder: Path, app: str, team: str = "") -> Path:
    """Write the project below `folder` and return it. app: the bundle identifier; team: of a developer account.

    Raises MeasureError: one of them is none, or something is there already; BundleError: it cannot be written.
    """
    if not BUNDLE.fullmatch(app):
        raise MeasureError(f"app={app!r} is no bundle identifier, as com.example.runner")
    if not TEAM.fullmatch(team):
        raise MeasureError(f"team={team!r} is no team identifier: ten capitals and digits, or nothing and Xcode asks")
    project = folder / PROJECT
    if project.exists():
        raise MeasureError(f"{project} is there already: remove it, or write elsewhere")
    with staged(project, force=False, what="project") as part:
        for name in ("Package.swift", "Info.plist", *SOURCES):
            place = part / "Sources" / name if name in SOURCES else part / name
            write_text(place, template(TEMPLATES, name, APP=app, TEAM=team))
    return project

"""The runners of phones as projects: for Xcode, signed and installed once on a Mac; for Android's NDK, built once."""

from __future__ import annotations

import re
from pathlib import Path

from edgevit.bundle import staged
from edgevit.devices.ios_usb import BUNDLE
from edgevit.embed.base import template, write_text
from edgevit.errors import MeasureError

TEMPLATES = "edgevit.runner_ios"
ANDROID = "edgevit.runner_android"
OF_APPS = "edgevit.embed.app_cpp"
"""The C++ app, of which Android's runner has some files."""
PROGRAM = {
    ANDROID: ("engine_executorch.cpp", "loop.cpp", "loop.hpp", "main.cpp", "record.hpp", "refused.hpp"),
    OF_APPS: ("engine.hpp", "engine_ort.cpp", "json.cpp", "json.hpp"),
}
"""Package → its files in the runner for Android."""
SOURCES = ("App.swift", "CoreAIEngine.swift", "Engines.swift", "Facts.swift", "Job.swift", "Round.swift")
PROJECT = "Runner.swiftpm"
ANDROID_PROJECT = "runner-android"
TEAM = re.compile(r"[A-Z0-9]{10}|")


def write_app(folder: Path, app: str, team: str = "") -> Path:
    """Write the project below `folder` and return it. app: the bundle identifier; team: of a developer account.

    Raises MeasureError: one of them is none, or something is there already; BundleError: it cannot be written.
    """
    if not BUNDLE.fullmatch(app):
        raise MeasureError(f"app={app!r} is no bundle identifier, as com.example.runner")
    if not TEAM.fullmatch(team):
        raise MeasureError(f"team={team!r} is no team identifier: ten capitals and digits, or nothing and Xcode asks")
    project = _free(folder / PROJECT)
    with staged(project, force=False, what="project") as part:
        for name in ("Package.swift", "Info.plist", *SOURCES):
            place = part / "Sources" / name if name in SOURCES else part / name
            write_text(place, template(TEMPLATES, name, APP=app, TEAM=team))
    return project


def write_program(folder: Path) -> Path:
    """Write the project of Android's runner below `folder` and return it. Raises as `write_app`."""
    project = _free(folder / ANDROID_PROJECT)
    with staged(project, force=False, what="project") as part:
        write_text(part / "CMakeLists.txt", template(ANDROID, "CMakeLists.txt"))
        for package, names in PROGRAM.items():
            for name in names:
                write_text(part / "src" / name, template(package, name))
    return project


def _free(project: Path) -> Path:
    """The place, where nothing is yet."""
    if project.exists():
        raise MeasureError(f"{project} is there already: remove it, or write elsewhere")
    return project

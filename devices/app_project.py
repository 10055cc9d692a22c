"""The runner app as a project for Xcode: written here, signed and installed once on a Mac."""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path

from edgevit.devices.ios_usb import BUNDLE
from edgevit.errors import MeasureError

TEMPLATES = "edgevit.runner_ios"
SOURCES = ("App.swift", "CoreAIEngine.swift", "Engines.swift", "Facts.swift", "Job.swift", "Round.swift")
PROJECT = "Runner.swiftpm"
TEAM = re.compile(r"[A-Z0-9]{10}|")


def write_app(folder: Path, app: str, team: str = "") -> Path:
    """Write the project below `folder` and return it. app: the bundle identifier; team: of a developer account.

    Raises MeasureError where one of them is none, or something is there already.
    """
    if not BUNDLE.fullmatch(app):
        raise MeasureError(f"app={app!r} is no bundle identifier, as com.example.runner")
    if not TEAM.fullmatch(team):
        raise MeasureError(f"team={team!r} is no team identifier: ten capitals and digits, or nothing and Xcode asks")
    project = folder / PROJECT
    if project.exists():
        raise MeasureError(f"{project} is there already: remove it, or write elsewhere")
    marks = {"@APP@": app, "@TEAM@": team}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".runner-", dir=folder))
    except OSError as error:
        raise MeasureError(f"{folder} cannot be written to ({error.strerror})") from error
    try:
        for name in ("Package.swift", "Info.plist", *SOURCES):
            text = resources.files(TEMPLATES).joinpath(name).read_text(encoding="utf-8")
            for mark, value in marks.items():
                text = text.replace(mark, value)
            path = part / ("Sources" if name in SOURCES else "") / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        part.chmod(0o755)
        part.rename(project)
    except OSError as error:
        raise MeasureError(f"{project} cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return project

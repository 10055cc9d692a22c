"""edgevit.embed: a bundle → a small, readable starting point of an app, engine and loader included.

APPS is the whole list. An app is one file with one class (protocol: `edgevit.embed.base.App`), its templates in a
package of their own, one line here, one test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.errors import EmbedError
from edgevit.names import did_you_mean, named

if TYPE_CHECKING:
    from edgevit.embed.base import App

APPS = {
    "python": "edgevit.embed.python:Python",
    "cpp": "edgevit.embed.cpp:Cpp",
    "swift": "edgevit.embed.swift:Swift",
    "kotlin": "edgevit.embed.kotlin:Kotlin",
    "web": "edgevit.embed.web:Web",
}


def app(name: str) -> App:
    """The app of a name. Raises EmbedError with what to type instead."""
    if name not in APPS:
        raise EmbedError(f"unknown app {name!r}{did_you_mean(name, APPS)}; apps: {', '.join(APPS)}")
    found: App = named(APPS[name])()
    return found

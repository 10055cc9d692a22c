"""The measurements of this user: one SQLite file, a row for each session and for each of its rounds.

A session is written in one transaction, so it is there whole or not at all; many may write at once, one waits for the
other. In $EDGEVIT_HOME, else in `edgevit` of the user's data folder ($XDG_DATA_HOME).
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgevit.devices.lines import lines
from edgevit.devices.result import Profile
from edgevit.errors import MeasureError
from edgevit.names import did_you_mean

VERSION = 1
TABLES = f"""
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, time TEXT NOT NULL, device TEXT NOT NULL, fake INTEGER NOT NULL, summary TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS rounds (
    session TEXT NOT NULL REFERENCES sessions (id), number INTEGER NOT NULL, bundle TEXT NOT NULL, line TEXT NOT NULL,
    PRIMARY KEY (session, number)
);
PRAGMA user_version = {VERSION};
"""
SESSIONS = "SELECT id, time, device, fake, summary FROM sessions"
WAIT_S = 30.0
"""So long one writer waits for another."""


def store_path() -> Path:
    """The file, which may not be there yet."""
    home = os.environ.get("EDGEVIT_HOME")
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "edgevit"
    return (Path(home).expanduser() if home else data) / "history.sqlite"


@contextmanager
def _opened() -> Iterator[sqlite3.Connection]:
    """The store, with its tables. Raises MeasureError for whatever is wrong with the file."""
    path = store_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, WAIT_S, isolation_level=None)) as store:
            found = store.execute("PRAGMA user_version").fetchone()[0]
            if found > VERSION:
                raise MeasureError(
                    f"the history {path} was written by a newer edgevit (its version {found}, known is {VERSION}): "
                    "update edgevit, or set EDGEVIT_HOME to another folder"
                )
            if found < VERSION:
                store.execute("PRAGMA journal_mode = WAL")
                store.executescript(TABLES)
            yield store
    except OSError as error:
        raise MeasureError(f"the history {path}: {error.strerror}; set EDGEVIT_HOME to a folder of yours") from error
    except sqlite3.Error as error:
        raise MeasureError(f"the history {path}: {error}; {_advice(str(error))}") from error


def _advice(text: str) -> str:
    """What to do about an error of SQLite."""
    if "full" in text or "I/O" in text:
        return "is the disk full? free some space"
    if "not a database" in text or "malformed" in text:
        return "move it away, the next profile begins a new one"
    return "set EDGEVIT_HOME to a folder of yours, or give --no-history"


def check() -> None:
    """See that it can be written, before something long begins. Raises MeasureError."""
    with _opened() as store:
        store.execute("BEGIN IMMEDIATE")
        store.execute("ROLLBACK")


def save(profile: Profile, engines: Mapping[str, Mapping[str, Any]]) -> str:
    """Add a session; its name. engines: see `edgevit.devices.lines.lines`.

    Raises MeasureError, and then nothing of it is there.
    """
    now = datetime.now(UTC)
    time = now.isoformat(timespec="seconds")
    session = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    summary = profile.to_json()
    device = summary["device"].get("name") or "local"
    rows = [
        (session, line["round"], line["bundle"], json.dumps(line, allow_nan=False))
        for line in lines(profile, session, time, engines)
    ]
    try:
        with _opened() as store:
            store.execute("BEGIN IMMEDIATE")
            whole = (session, time, device, int(profile.fake), json.dumps(summary, allow_nan=False))
            store.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", whole)
            store.executemany("INSERT INTO rounds VALUES (?, ?, ?, ?)", rows)
            store.execute("COMMIT")
    except MeasureError as error:
        raise MeasureError(f"the measurement is not in the history: {error}") from error
    return session


def sessions(bundle: str | None = None, device: str | None = None) -> list[dict[str, Any]]:
    """Those of a bundle and a device, oldest first: id, time, device, fake, and the summary that profile gave.

    Raises MeasureError: a name that was never measured.
    """
    if not store_path().exists():
        return []
    with _opened() as store:
        for what, column, name in (("bundle", "rounds.bundle", bundle), ("device", "sessions.device", device)):
            _known(store, what, column, name)
        found = store.execute(
            f"{SESSIONS} WHERE (?1 IS NULL OR device = ?1) AND (?2 IS NULL OR "
            "EXISTS (SELECT 1 FROM rounds WHERE session = id AND bundle = ?2)) ORDER BY sessions.rowid",
            (device, bundle),
        ).fetchall()
    return [_session(row) for row in found]


def _known(store: sqlite3.Connection, what: str, column: str, name: str | None) -> None:
    """Refuse a name that nothing was measured under."""
    names = [row[0] for row in store.execute(f"SELECT DISTINCT {column} FROM {column.partition('.')[0]} ORDER BY 1")]
    if name is not None and name not in names:
        there = f"measured are {', '.join(names)}" if names else "nothing is measured yet"
        raise MeasureError(f"no measurement of {what} {name!r}{did_you_mean(name, names)}; {there}")


def session(name: str) -> dict[str, Any]:
    """One, with the lines of its rounds under `rounds`. name: the beginning of its id suffices.

    Raises MeasureError: there is none, or there are several.
    """
    found: list[Any] = []
    rows: list[Any] = []
    if store_path().exists():
        with _opened() as store:
            found = store.execute(f"{SESSIONS} WHERE substr(id, 1, ?) = ?", (len(name), name)).fetchall()
            if len(found) == 1:
                lines = "SELECT line FROM rounds WHERE session = ? ORDER BY number"
                rows = store.execute(lines, found[0][:1]).fetchall()
    if len(found) != 1:
        told = f"{len(found)} sessions begin with {name!r}; give more of it" if found else f"no session {name!r}"
        raise MeasureError(f"{told}; `edgevit history` lists them")
    return {**_session(found[0]), "rounds": [json.loads(row[0]) for row in rows]}


def newest() -> str:
    """The name of the session that was added last. Raises MeasureError: there is none."""
    found = None
    if store_path().exists():
        with _opened() as store:
            found = store.execute("SELECT id FROM sessions ORDER BY rowid DESC LIMIT 1").fetchone()
    if found is None:
        raise MeasureError(f"nothing is measured yet ({store_path()}): run `edgevit profile BUNDLE` first")
    return str(found[0])


def _session(row: tuple[Any, ...]) -> dict[str, Any]:
    return {**dict(zip(("session", "time", "device", "fake"), row, strict=False)), "summary": json.loads(row[4])}

"""The user's devices: one TOML file, a table each, and nothing guessed.

    [board]
    transport = "ssh"
    host = "me@192.168.1.20"
    python = "/opt/venv/bin/python"
    work = ".cache/edgevit"

Which keys there are is the transport's (`edgevit.devices.transport.TRANSPORTS`).
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from edgevit.devices.transport import TRANSPORTS, Transport
from edgevit.errors import MeasureError
from edgevit.files import whole
from edgevit.names import did_you_mean, named

NAME = re.compile(r"[A-Za-z0-9_-]+")
LOCAL = "local"
"""The device that needs no configuration: this machine, in this Python."""


@dataclass(frozen=True)
class Device:
    """A named device and the way to it; `kind` is the transport's name."""

    name: str
    kind: str
    transport: Transport


def config_path() -> Path:
    """`devices.toml` in the user's configuration folder."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "edgevit" / "devices.toml"


def read(path: Path | None = None) -> dict[str, dict[str, Any]]:
    """Name → keys, as they stand in the file; nothing where there is no file. Raises MeasureError."""
    path = path or config_path()
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise MeasureError(f"{path} cannot be read ({error}): correct it") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise MeasureError(f"{path}: {name!r} stands outside a table; a device is [NAME] and its keys below")
    return tables


def find(name: str, path: Path | None = None) -> Device:
    """The device of that name. Raises MeasureError with what to type instead."""
    path = path or config_path()
    tables = read(path)
    if name not in tables:
        known = f"; there are {', '.join(tables)}" if tables else ""
        hint = did_you_mean(name, list(tables))
        raise MeasureError(f"no device {name!r} in {path}{hint}{known}; `edgevit devices add {name}` makes one")
    return make(name, tables[name], str(path))


def make(name: str, table: Mapping[str, Any], where: str) -> Device:
    """A device from its keys. Raises MeasureError that names the key."""
    kind = table.get("transport")
    if kind not in TRANSPORTS:
        raise MeasureError(f"{where}: device {name!r} has transport {kind!r}; give one of {', '.join(TRANSPORTS)}")
    cls = named(TRANSPORTS[kind])
    options = {key: value for key, value in table.items() if key != "transport"}
    known = [field for field in fields(cls) if field.init]
    for key, value in options.items():
        if key not in (names := [field.name for field in known]):
            raise MeasureError(
                f"{where}: device {name!r} has a key {key!r}{did_you_mean(key, names)}; {kind} has {', '.join(names)}"
            )
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise MeasureError(f"{where}: device {name!r}: {key} is {value!r}; give a text or a whole number")
    needed = [field.name for field in known if field.default is MISSING and field.default_factory is MISSING]
    missing = [key for key in needed if key not in options]
    if missing:
        raise MeasureError(f"{where}: device {name!r} lacks {', '.join(missing)}; transport {kind} needs them")
    try:
        return Device(name, kind, cls(**options))
    except MeasureError as error:
        raise MeasureError(f"{where}: device {name!r}: {error}") from error


def add(name: str, table: Mapping[str, str | int], path: Path | None = None) -> Path:
    """Write a new device at the end of the file, which may be new. Raises MeasureError, and then writes nothing."""
    path = path or config_path()
    if not NAME.fullmatch(name) or name == LOCAL:
        raise MeasureError(f"{name!r} cannot be a device's name: letters, digits, - and _, and not {LOCAL}")
    if name in read(path):
        raise MeasureError(f"{path} has a device {name!r} already: edit it there, or choose another name")
    make(name, table, "these keys")
    lines = [f"[{name}]", *(f"{key} = {_toml(key, value)}" for key, value in table.items())]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text("utf-8") if path.exists() else ""
        gap = "" if not old else "\n" if old.endswith("\n") else "\n\n"
        with whole(path) as beside:
            beside.write_text(old + gap + "\n".join(lines) + "\n", "utf-8")
    except OSError as error:
        raise MeasureError(f"{path} cannot be written ({error.strerror})") from error
    return path


def _toml(key: str, value: str | int) -> str:
    """A TOML value: its basic strings are JSON's, control characters aside."""
    if isinstance(value, str) and not value.isprintable():
        raise MeasureError(f"{key} has a control character in it: {value!r}")
    return json.dumps(value, ensure_ascii=False)

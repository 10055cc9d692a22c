"""Files of a device, kept there by content: what is there already is not sent again.

A tree is a folder of files under WORK/trees, named by the sha256 of its names and contents. It is built beside its
place, checked on the device and renamed when whole. What no session used for `KEEP_DAYS` is removed.
"""

from __future__ import annotations

import base64
import json
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from edgevit.devices.transport import Done, PhoneTransport, PythonTransport
from edgevit.errors import MeasureError

KEEP_DAYS = 30

FIND = """
import os, sys
try:
    os.utime(sys.argv[1])
except OSError:
    sys.exit(3)
"""
"""Is the tree there? Then it counts as used now."""

FINISH = """
import base64, hashlib, json, os, shutil, sys, time
part, final, keep_days = sys.argv[1], sys.argv[2], float(sys.argv[3])
try:
    for name, (digest, text) in json.load(sys.stdin).items():
        path = os.path.join(part, name)
        if text is not None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as stream:
                stream.write(base64.b64decode(text))
        found = hashlib.sha256()
        with open(path, "rb") as stream:
            for piece in iter(lambda: stream.read(1 << 20), b""):
                found.update(piece)
        if found.hexdigest() != digest:
            sys.exit(name + " did not arrive as it was sent")
except OSError as error:
    sys.exit(str(error))
if os.path.isdir(final):
    shutil.rmtree(part)
else:
    os.rename(part, final)
os.utime(final)
above = os.path.dirname(final)
for name in os.listdir(above):
    path = os.path.join(above, name)
    if os.path.getmtime(path) < time.time() - keep_days * 86400:
        shutil.rmtree(path, ignore_errors=True)
"""
"""Write the small files, check what arrived, put it in its place; remove what nobody used for long."""

SMALL_BYTES = 1 << 16
"""Files up to this size travel together, in one go."""

REMOVE = "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True)"


class File(NamedTuple):
    """A file here, and the sha256 of its content."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> File:
        """With the hash worked out."""
        return cls(path, sha256(path.read_bytes()).hexdigest())


def tree_name(files: Mapping[str, str]) -> str:
    """The name of a tree of files (name → sha256): it changes with every name and every content in it."""
    lines = "".join(f"{files[name]} {name}\n" for name in sorted(files))
    return sha256(lines.encode()).hexdigest()[:32]


def place_tree(transport: PythonTransport, files: Mapping[str, File]) -> str:
    """Have the files on the device, and return their folder there.

    files: relative name, with forward slashes → file. Raises MeasureError: a step on the way failed.
    """
    final = f"{transport.work}/trees/{tree_name({name: file.sha256 for name, file in files.items()})}"
    if _python(transport, FIND, [final]).status == 0:
        return final
    part = f"{final}.{uuid.uuid4().hex[:8]}.part"
    try:
        listed: dict[str, tuple[str, str | None]] = {}
        for name, file in files.items():
            small = file.path.stat().st_size <= SMALL_BYTES
            if not small:
                transport.push(file.path, f"{part}/{name}")
            listed[name] = (file.sha256, base64.b64encode(file.path.read_bytes()).decode() if small else None)
        done = _python(transport, FINISH, [part, final, str(KEEP_DAYS)], json.dumps(listed).encode())
        if done.status:
            raise MeasureError(f"copying to {final} failed: {done.last_line}; is there space left on the device?")
    except BaseException:
        _python(transport, REMOVE, [part])
        raise
    return final


def push_tree(transport: PhoneTransport, folder: Path, names: Sequence[str], place: str) -> None:
    """Files of a folder to a place on a phone, and last, as `PLACE.whole`, the mark that they are whole."""
    for name in names:
        transport.push(folder / name, f"{place}/{name}")
    with tempfile.NamedTemporaryFile(prefix="edgevit-") as mark:
        transport.push(Path(mark.name), f"{place}.whole")


def _python(transport: PythonTransport, script: str, words: list[str], stdin: bytes = b"") -> Done:
    """Run a few lines of Python on the device. Raises MeasureError where there is no Python."""
    done = transport.run([transport.python, "-I", "-S", "-c", script, *words], stdin, timeout_s=300)
    if done.status in (126, 127) or b"ModuleNotFoundError" in done.stderr:
        raise MeasureError(
            f"running {transport.python} on the device failed: {done.last_line}; `python` in devices.toml must name a "
            "Python 3.9 or later there"
        )
    return done

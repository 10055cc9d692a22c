"""The server of the page that measures in a person's browser: everything under a secret path, one page at a time.

A page says what it is (`hello`) and gets a number; under that it takes jobs and posts results, and it keeps one request
open (`alive`), whose end says at once that it is gone, without traffic while it measures.
"""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from edgevit.devices.web_server import POLL_S, Isolated, Job, Quiet, result

PAGE = {"": "measure.html"} | {name: name for name in ("measure.js", "check.js", "engine.js", "parts.js", "style.css")}
HELLO_BYTES, RESULT_BYTES = 1 << 16, 1 << 25
"""A page posts no more."""
SILENT_S = 60.0
"""So long may a request pause."""
GRACE_S = 5.0
"""So long may a page be without its open request; some browsers end one that is silent for a minute, and ask again."""
SPOKEN_S = 0.3
"""A page that waits for a job has read the last word by then."""
KEEP = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""When a device is gone without a word."""


class PageGone(Exception):
    """It was closed or reloaded, or its device is out of reach."""


class Page:
    """One page that said hello. facts: what it said."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.number = secrets.token_hex(8)
        self.facts = facts
        self.job: Job | None = None  # until its result is there: a page that asks again gets it again
        self.result: Job | None = None
        self.lines: set[socket.socket] = set()
        self.since = time.monotonic()

    def gone(self, grace_s: float | None = None) -> bool:
        """Whether no request of it has been open for so long; None: GRACE_S."""
        return not self.lines and time.monotonic() - self.since > (GRACE_S if grace_s is None else grace_s)


class PageHandler(Isolated):
    """Answers under the secret path alone."""

    server: PageServer
    timeout = SILENT_S

    def do_GET(self) -> None:
        """The page's own files, those of the bundles, a job, or the request that stays open."""
        match self.words():
            case ["page", number, what] if page := self.server.known(number):
                if what == "job":
                    self.server.wait_for(lambda: page.job is not None, POLL_S)
                    self.give_job(page.job)
                elif what == "alive":
                    self.stay(page)
                else:
                    self.give(404)
            case ["page", _, _]:
                self.give(410)
            case ["bundle", number, *names] if path := self.server.file(number, "/".join(names)):
                self.give_file(path)
            case [name] if name in PAGE:
                content = resources.files("edgevit.web").joinpath(PAGE[name]).read_bytes()
                self.give(200, content, self.guess_type(PAGE[name]))
            case _:
                self.give(404)

    def do_HEAD(self) -> None:
        """Nobody asks."""
        self.give(404)

    def do_POST(self) -> None:
        """A page's hello, or the result of its job."""
        match self.words():
            case ["hello"]:
                self.welcome()
            case ["page", number, "result"] if page := self.server.known(number):
                body = self.body(RESULT_BYTES)
                if body is not None:
                    self.give(self.server.take(page, body))
            case _:
                self.close_connection = True
                self.give(404)

    def words(self) -> list[str]:
        """The path below the secret, in pieces; [] where that is wrong."""
        token, _, rest = self.path.partition("?")[0].removeprefix("/").partition("/")
        return unquote(rest).split("/") if secrets.compare_digest(token.encode(), self.server.token.encode()) else []

    def body(self, most: int) -> bytes | None:
        """What was posted, whole; None, and an answer is given, where that is too much or unsaid."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > most:
            self.give(413 if length.isdecimal() else 411)
            return None
        return self.rfile.read(int(length))

    def welcome(self) -> None:
        """A new page, unless another one is there."""
        body = self.body(HELLO_BYTES)
        if body is None:
            return
        try:
            facts = json.loads(body)
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            self.give(400)
            return
        self.give(*self.server.admit(facts))

    def stay(self, page: Page) -> None:
        """Answer nothing, until either side ends it."""
        line = self.connection
        line.settimeout(None)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP.items():
            if hasattr(socket, name):
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.send_response(200)
        self.end_headers()
        self.server.joined(page, line)
        try:
            with suppress(OSError):
                line.recv(1)
        finally:
            self.server.left(page, line)

    def give_file(self, path: Path) -> None:
        """A bundle's file; the browser may keep it, for the secret path is another the next time."""
        self.cache = "private, max-age=86400, immutable"
        with path.open("rb") as stream:
            self.send_response(200)
            self.send_header("Content-Type", self.guess_type(path.name))
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            shutil.copyfileobj(stream, self.wfile)


class PageServer(Quiet):
    """Serves the page and the files of bundles: for each its folder and the names in it. Raises OSError."""

    def __init__(
        self,
        place: tuple[str, int],
        bundles: Sequence[tuple[Path, Mapping[str, str]]] = (),
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.token = secrets.token_urlsafe(16)
        self.bundles = bundles
        self.context = context
        self.page: Page | None = None
        self.changed = threading.Condition()
        super().__init__(place, PageHandler)
        scheme, (host, port) = "https" if context else "http", (place[0], self.server_address[1])
        self.url = f"{scheme}://{host}:{port}/{self.token}/"

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the thread of its own, where a slow handshake holds up nobody."""
        if self.context:
            request.settimeout(SILENT_S)
            with self.context.wrap_socket(request, server_side=True) as secure:
                super().finish_request(secure, client_address)
        else:
            super().finish_request(request, client_address)

    def file(self, number: str, name: str) -> Path | None:
        """A file that a bundle's manifest names."""
        known = number.isdecimal() and int(number) < len(self.bundles)
        folder, names = self.bundles[int(number)] if known else (Path(), {})
        return folder / name if name in names else None

    def known(self, number: str) -> Page | None:
        """The page, if it is the one that measures."""
        page = self.page
        return page if page and secrets.compare_digest(page.number.encode(), number.encode()) else None

    def admit(self, facts: dict[str, Any]) -> tuple[int, bytes]:
        """The answer to a hello. A page that was reloaded takes its own place; another browser does not."""
        with self.changed:
            old = self.page
            if old and not old.gone(1.0):
                return 409, b"Another page measures already: close it, or this one."
            if old and old.facts.get("user_agent") != facts.get("user_agent"):
                return 403, b"This session measures in another browser: open the page there."
            self.page = Page(facts)
            self.changed.notify_all()
            return 200, self.page.number.encode()

    def take(self, page: Page, body: bytes) -> int:
        """The status of a result's answer: 409 where nothing was asked."""
        try:
            found = result(body)
        except ValueError:
            found = {}, b""
        with self.changed:
            if page.job is None:
                return 409
            page.job, page.result = None, found
            self.changed.notify_all()
        return 204

    def joined(self, page: Page, line: socket.socket) -> None:
        """A request is open."""
        with self.changed:
            page.lines.add(line)

    def left(self, page: Page, line: socket.socket) -> None:
        """It ended."""
        with self.changed:
            page.lines.discard(line)
            page.since = time.monotonic()
            self.changed.notify_all()

    def wait_for(self, found: Callable[[], bool], limit_s: float) -> bool:
        """Until it is so, or the time is up: whether it is."""
        end = time.monotonic() + limit_s
        with self.changed:
            while not found():
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self.changed.wait(min(left, GRACE_S / 2))
        return True

    def ask(self, page: Page, job: Job, limit_s: float) -> Job | None:
        """What the page answers; None: nothing in that time. Raises PageGone."""
        with self.changed:
            page.job, page.result = job, None
            self.changed.notify_all()
        self.wait_for(lambda: page.result is not None or page.gone(), limit_s)
        with self.changed:
            page.job = None
            if page.result is None and page.gone():
                raise PageGone
            return page.result

    def end(self, text: str) -> None:
        """Tell the page, and stop."""
        page = self.page
        if page and page.lines:
            with self.changed:
                page.job = {"kind": "end", "text": text}, b""
                self.changed.notify_all()
            time.sleep(SPOKEN_S)
        self.shutdown()
        for line in list(page.lines) if page else ():
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self.server_close()

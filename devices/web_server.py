"""A small server of isolated pages, which take jobs and post what came of them (check.js). Standard library alone."""

from __future__ import annotations

import json
import queue
import secrets
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

POLL_S = 10.0
"""So long a page waits for a job before it asks again."""
Job = tuple[dict[str, Any], bytes]
"""What a page is asked or answers: settings or facts, and values."""


class Isolated(SimpleHTTPRequestHandler):
    """Answers that isolate a page; quiet."""

    cache = "no-store"

    def end_headers(self) -> None:
        """What SharedArrayBuffer, and so WASM threads, need; and what may be cached."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", self.cache)
        super().end_headers()

    def give(self, status: int, body: bytes = b"", kind: str = "text/plain", **headers: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def give_job(self, job: Job | None) -> None:
        """A job; 204 where none came."""
        if job is None:
            self.give(204)
        else:
            self.give(200, job[1], x_job=json.dumps(job[0]))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Handler(Isolated):
    """The folder's files; and jobs under a secret path, for the page's test mode (check.js)."""

    server: Server

    def do_GET(self) -> None:
        """A file, or the next job."""
        if self.path == f"/check/{self.server.token}/job":
            try:
                job = self.server.jobs.get(timeout=POLL_S)
            except queue.Empty:
                job = None
            self.give_job(job)
        else:
            super().do_GET()

    def do_POST(self) -> None:
        """What a job gave."""
        if self.path != f"/check/{self.server.token}/result":
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        head = self.headers.get("x-result")  # of pages before the line of JSON
        self.server.results.put(result(body) if head is None else (json.loads(head), body))
        self.give(204)


def result(body: bytes) -> Job:
    """What a page posts: a line of JSON, then float32 values. Raises ValueError."""
    head, _, rest = body.partition(b"\n")
    return json.loads(head), rest


class Quiet(ThreadingHTTPServer):
    """A server in threads of its own, from its making on."""

    daemon_threads = True

    def __init__(self, place: tuple[str, int], handler: Any) -> None:
        super().__init__(place, handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""


class Server(Quiet):
    """Loopback only, a free port unless one is given."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.token = secrets.token_urlsafe(16)
        self.jobs: queue.Queue[Job] = queue.Queue()
        self.results: queue.Queue[Job] = queue.Queue()
        super().__init__(("127.0.0.1", port), partial(Handler, directory=str(folder)))

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

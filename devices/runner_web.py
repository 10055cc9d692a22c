"""Measure one web bundle in a fresh headless Chromium: `python runner_web.py job.json` (the job of runner_ort.py).

Python 3.9 or later, Linux or macOS. Needs the standard library, numpy and Chromium. The engine is the bundle's
`index.html`; options: threads. Inferences are timed in the page's worker, by a clock that isolation sharpens to 5 us;
copying the input into WASM is part of each, as it is in an app. `Browser` also serves edgevit.runtimes.web.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RUNNER = "web"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
INSTALL = "install it (apt-get install chromium; brew install --cask chromium) or name it: CHROMIUM=/path/to/chrome"
FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",  # its end is ours: whatever ends this process closes it, and the browser with it
)  # fmt: skip
START_S, POLL_S = 60.0, 10.0


def find_chromium() -> str | None:
    """Path of a Chromium: the environment's CHROMIUM, else one on PATH, else macOS's place."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found or (MAC if Path(MAC).is_file() else None)


def chromium_version(path: str) -> str:
    """Such as `156.0.8078.108`. Raises RuntimeError when it does not start."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=START_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{path} does not start: {error}") from error
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    if not found:
        raise RuntimeError(f"{path} --version says {done.stdout.strip()!r}, not a version")
    return found[0]


class Handler(SimpleHTTPRequestHandler):
    """The folder's files, isolated; and jobs under a secret path, for the page's test mode (check.js)."""

    server: Server

    def end_headers(self) -> None:
        """What SharedArrayBuffer, and so WASM threads, need; and nothing is cached."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def do_GET(self) -> None:
        """A file, or the next job."""
        if self.path != f"/check/{self.server.token}/job":
            super().do_GET()
            return
        try:
            head, body = self.server.jobs.get(timeout=POLL_S)
        except queue.Empty:
            self.send_response(204)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("x-job", json.dumps(head))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """What a job gave."""
        if self.path != f"/check/{self.server.token}/result":
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.results.put((json.loads(self.headers["x-result"]), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    """Loopback only, a free port unless one is given."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), partial(Handler, directory=str(folder)))
        self.token = secrets.token_urlsafe(16)
        self.jobs: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()
        self.results: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""


class Browser:
    """A headless Chromium on a bundle's page in test mode. Ends with `close`, with the object, or with this process."""

    def __init__(
        self, folder: Path, threads: int | None = None, backend: str = "wasm", flags: tuple[str, ...] = ()
    ) -> None:
        path = find_chromium()
        if path is None:
            raise RuntimeError(f"Chromium is not installed; {INSTALL}")
        self.version = chromium_version(path)
        self.server = Server(folder)
        self.profile = tempfile.mkdtemp(prefix="edgevit-chromium-")
        url = f"{self.server.address}/index.html?check={self.server.token}&backend={backend}&threads={threads or 0}"
        self.log = (Path(self.profile) / "stderr.txt").open("w+b")
        self.peak = 0
        # The shell hands standard input on as file 3, where Chromium listens for its debugger.
        command = ["/bin/sh", "-c", 'exec "$@" 3<&0 4>/dev/null </dev/null', "sh", path, *FLAGS, *_sandbox(), *flags]
        self.process = subprocess.Popen(
            [*command, f"--user-data-dir={self.profile}", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
            start_new_session=True,  # Ctrl-C is for us alone; we end the browser
        )
        self.close = weakref.finalize(self, _close, self.process, self.server, self.log, self.profile)
        try:
            self.facts, _ = self._wait(START_S)
        except BaseException:
            self.close()
            raise

    def ask(self, kind: str, body: bytes, timeout_s: float = 600.0, **settings: Any) -> tuple[dict[str, Any], bytes]:
        """One job (worker.js): its facts and its float32 bytes. Raises RuntimeError."""
        self.server.jobs.put(({"kind": kind, **settings}, body))
        return self._wait(timeout_s)

    def _wait(self, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        end = time.monotonic() + timeout_s
        while True:
            try:
                facts, body = self.server.results.get(timeout=0.5)
                break
            except queue.Empty:
                if self.process.poll() is not None:
                    raise RuntimeError(f"Chromium {self.version} ended: {self._last_words()}") from None
                if time.monotonic() > end:
                    raise RuntimeError(f"Chromium {self.version}: no answer after {timeout_s:.0f} s") from None
        if "error" in facts:
            raise RuntimeError(facts["error"])
        return facts, body

    def _last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit status {self.process.returncode}"

    def peak_memory_bytes(self) -> int:
        """Peak resident memory so far of the process with page, worker and WASM. 0 where /proc does not tell."""
        # One that was larger may have ended: Chromium drops the page it started with.
        self.peak = max(self.peak, renderer_peak(self.process.pid))
        return self.peak


def renderer_peak(session: int) -> int:
    """Bytes: the largest peak of the renderers of a Chromium that leads this session and still run; 0 where none."""
    peaks = [0]
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it may have ended
            text, command = status.read_text("utf-8", "replace"), (status.parent / "cmdline").read_bytes()
            if os.getsid(int(status.parent.name)) == session and b"--type=renderer" in command:
                peaks.append(int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) * 1024)
    return max(peaks)


def _sandbox() -> list[str]:
    """Chromium refuses to run as root with its sandbox; what it opens here is our own page."""
    return ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


def _close(process: subprocess.Popen[bytes], server: Server, log: Any, profile: str) -> None:
    """End the browser with its children, then the server, then its files."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    server.shutdown()
    server.server_close()
    log.close()
    shutil.rmtree(profile, ignore_errors=True)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The whole round: a fresh browser, load, first inference, warm-up, samples."""
    import numpy as np

    page = Path(job["engine"])
    if not page.is_file():
        raise RuntimeError(f"engine file {page} does not exist")
    threads = int(job["options"].get("threads", 0))
    array = np.random.default_rng(job["seed"]).standard_normal(tuple(job["input"]["shape"]), dtype=np.float32)
    settings = {name: job[name] for name in ("warmup_s", "min_samples", "min_seconds", "max_seconds")}
    browser = Browser(page.parent, threads)
    try:
        facts, loaded = browser.facts, browser.peak_memory_bytes()
        if not facts["isolated"]:
            raise RuntimeError("the page is not isolated: its clock would be coarse and it would have one thread")
        found, _ = browser.ask("bench", array.tobytes(), timeout_s=600 + 3 * job["max_seconds"], **settings)
        peak = browser.peak_memory_bytes()
    finally:
        browser.close()
    return {
        "schema": 1,
        "runner": RUNNER,
        "fake": False,
        "runtime": "onnxruntime-web",
        "runtime_version": facts["version"],
        "browser": f"Chromium {browser.version}",
        "threads": facts["threads"],
        "load_ms": facts["load_ms"],
        "load_memory_bytes": loaded,
        "applied": {key: facts[key] for key in ("backend", "reason", "cores", "isolated")},
        **found,
        "peak_memory_bytes": peak,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "job": job,
    }


def main(argv: list[str]) -> int:
    """Read the job, write the record beside its place and rename it there: whole or absent."""
    try:
        if len(argv) != 2:
            raise RuntimeError(f"usage: python {Path(argv[0]).name} job.json")
        job = json.loads(Path(argv[1]).read_text("utf-8"))
        text = json.dumps(measure(job), allow_nan=False)
        out = Path(job["out"])
        part = out.with_name(out.name + ".part")
        part.write_text(text, "utf-8")
        os.replace(part, out)
    except KeyError as error:
        print(f"runner_{RUNNER}: the job has no {error}", file=sys.stderr)
        return 1
    except Exception as error:  # the process ends here: whatever the runtime raised becomes the one line
        print(f"runner_{RUNNER}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

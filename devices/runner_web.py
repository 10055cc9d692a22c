"""Measure one web bundle in a fresh headless Chromium: `python runner_web.py job.json` (the job of runner_ort.py).

Python 3.9 or later, Linux or macOS. Needs numpy and Chromium, and edgevit beside it. The engine is the bundle's
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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

from edgevit.devices.web_server import Server

RUNNER = "web"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
INSTALL = "install it (apt-get install chromium; brew install --cask chromium) or name it: CHROMIUM=/path/to/chrome"
FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",  # its end is ours: whatever ends this process closes it, and the browser with it
)  # fmt: skip
START_S = 60.0


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


def _close(process: subprocess.Popen[bytes], server: Server | None, log: Any, profile: str) -> None:
    """End the browser with its children, then the server, if it is ours, then its files."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    if server:
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
    more = {"load_memory_bytes": loaded, "python": platform.python_version(), "machine": platform.machine()}
    return {**as_record(job, {**facts, **found}, f"Chromium {browser.version}", peak), **more}


def as_record(job: dict[str, Any], facts: dict[str, Any], browser: str, peak: int | None) -> dict[str, Any]:
    """The round's record. facts: what the worker said of load and bench. peak: bytes; None is unknown."""
    return {
        "schema": 1,
        "runner": RUNNER,
        "fake": False,
        "runtime": "onnxruntime-web",
        "runtime_version": facts["version"],
        "browser": browser,
        "applied": {key: facts[key] for key in ("backend", "reason", "cores", "isolated")},
        "placement": facts["backend"],
        **{
            key: facts[key]
            for key in ("threads", "load_ms", "first_ms", "warmup", "samples_ms", "median_ms", "tick_ms")
        },
        "peak_memory_bytes": peak,
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

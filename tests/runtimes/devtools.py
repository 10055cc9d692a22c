"""A page in a headless Chromium, asked through its debugger: what a person would see."""

import base64
import json
import os
import subprocess
import tempfile
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler

from edgevit.devices.runner_web import FLAGS, Server, _close, _sandbox, find_chromium
from edgevit.errors import EdgeVitError
from edgevit.runtimes import runtime


def lacking():
    """What of npm and Chromium is missing; `.ci/run` installs both."""
    try:
        runtime("web").version()
    except EdgeVitError as error:
        return str(error)
    return runtime("web").runs_here()


class Plain(Server):
    """What `python -m http.server` is: no headers that isolate a page."""

    def __init__(self, folder):
        super().__init__(folder)
        self.RequestHandlerClass = partial(PlainHandler, directory=str(folder))


class PlainHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class Page:
    """One page of a served folder, or none yet; `with Page(folder, "?image=a.png") as page`.

    script: runs in each document before its own scripts.
    """

    def __init__(self, folder=None, query="", size="1000,900", flags=(), isolated=True, script=""):
        self.server = (Server if isolated else Plain)(folder) if folder else None
        self.profile = tempfile.mkdtemp(prefix="edgevit-chromium-")
        # Chromium's debugger reads file 3 and writes file 4; the shell makes them of standard input and output
        command = ["/bin/sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", find_chromium(), *FLAGS]
        self.process = subprocess.Popen(
            [*command, *_sandbox(), *flags, f"--user-data-dir={self.profile}", f"--window-size={size}", "about:blank"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.count, self.rest, self.session = 0, b"", None
        target = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.target, self.other = target["targetId"], None
        self._attach(script)
        if folder:
            self.start = f"{self.server.address}/index.html"
            self.go(self.start + query)

    def _attach(self, script):
        self.session = self.ask("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        if script:
            self.ask("Page.enable")
            self.ask("Page.addScriptToEvaluateOnNewDocument", source=script)

    def go(self, url):
        self.ask("Page.navigate", url=url)

    def again(self, query="", script=""):
        """A second visit, in a new tab of the same browser; the first is closed."""
        old, self.session = self.target, None
        self.target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.ask("Target.closeTarget", targetId=old)
        self._attach(script)
        self.go(self.start + query)

    def ask(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.process.stdin.fileno(), json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                part = os.read(self.process.stdout.fileno(), 1 << 20)
                if not part:
                    raise RuntimeError("Chromium ended")
                self.rest += part
            text, _, self.rest = self.rest.partition(b"\0")
            found = json.loads(text)
            if found.get("id") == self.count:
                assert "error" not in found, found
                return found["result"]

    def hide(self):
        """Put another tab in front."""
        self.other = self.other or self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.ask("Target.activateTarget", targetId=self.other)
        self.wait("document.hidden")

    def show(self):
        self.ask("Target.activateTarget", targetId=self.target)
        self.wait("!document.hidden")

    def value(self, expression):
        found = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    def wait(self, expression, seconds=60):
        """Until an expression is true; its value."""
        end = time.monotonic() + seconds
        while not (found := self.value(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} after {seconds} s: {self.value('document.body.innerText')}")
            time.sleep(0.1)
        return found

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        _close(self.process, self.server, self.process.stdout, self.profile)

"""Transport `browser`: a page that a person opens on the device, and that measures. Nothing is run or copied there."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgevit.devices.in_browser import InBrowser
from edgevit.devices.lock import session_lock
from edgevit.devices.page_server import PageServer
from edgevit.devices.plan import Job
from edgevit.devices.transport import Tell
from edgevit.errors import MeasureError

BACKENDS = ("auto", "wasm", "webgpu")


@dataclass(frozen=True)
class Browser:
    """A page at https or http://HOST:PORT.

    host: address or name of this machine under which the device reaches it; the page is served on that alone. port: 0
    is any free one. cert, key: files (PEM) for https, without which a browser isolates pages of its own machine alone.
    backend: `auto` is WebGPU where engine and browser can. wait_s: seconds for somebody to open the page.
    """

    host: str = "127.0.0.1"
    port: int = 0
    cert: str = ""
    key: str = ""
    backend: str = "auto"
    wait_s: int = 300

    def __post_init__(self) -> None:
        if not self.host or self.host.startswith("-") or _is_any(self.host):
            raise MeasureError(
                f"host={self.host!r} is no address that a device could open: give this machine's own, as 192.168.1.10"
            )
        if not 0 <= int(self.port) < 1 << 16:
            raise MeasureError(f"port={self.port} must be 0 (any free one) to 65535")
        if self.backend not in BACKENDS:
            raise MeasureError(f"backend={self.backend!r} is not one of {', '.join(BACKENDS)}")
        if bool(self.cert) != bool(self.key):
            raise MeasureError("https needs both cert and key")
        if self.wait_s < 1:
            raise MeasureError(f"wait_s={self.wait_s} must be 1 or more seconds")

    @contextmanager
    def hold(self, name: str, jobs: Sequence[Job], tell: Tell) -> Iterator[InBrowser]:
        """Serve the page, say its address, and hold the first browser that opens it. Raises MeasureError.

        This machine's lock is held too: the browser may be its own.
        """
        for job in jobs:
            if job.runner != "web" or job.folder is None:
                raise MeasureError(
                    f"{job.bundle}: runner {job.runner!r} does not run in a browser: export with --target web"
                )
        with session_lock():
            once = list({job.bundle: job for job in jobs}.values())
            server = self._serve([(job.folder, job.files) for job in once if job.folder])
            said = "edgevit was stopped; this page can be closed."
            try:
                session = InBrowser(name, server, once, self.backend, self.wait_s, tell)
                session.open()
                yield session
                said = "Done; this page can be closed."
            except MeasureError as error:
                said = f"edgevit ended: {error}"
                raise
            finally:
                server.end(said)

    def _serve(self, bundles: Sequence[tuple[Path, Mapping[str, str]]]) -> PageServer:
        """The page's server. Raises MeasureError."""
        context = None
        if self.cert:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            try:
                context.load_cert_chain(Path(self.cert).expanduser(), Path(self.key).expanduser())
            except (OSError, ssl.SSLError) as error:
                raise MeasureError(f"cert={self.cert}, key={self.key} cannot be used for https: {error}") from error
        try:
            return PageServer((self.host, int(self.port)), bundles, context)
        except OSError as error:
            raise MeasureError(
                f"the page cannot be served on {self.host}:{self.port} ({error.strerror}): host must be an address of "
                "this machine, and the port free"
            ) from error


def _is_any(host: str) -> bool:
    """Whether it is the address that stands for all."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False

"""Transport `ssh`: the system's OpenSSH, so that ~/.ssh/config, agents, jump hosts and known_hosts hold as they are.

Keys only: nobody is asked for anything (BatchMode). A host key that is unknown or changed is refused, as is a host
for which the user's configuration turns the check off. One connection is opened and shared by all commands.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgevit.devices.transport import Done, call
from edgevit.errors import MeasureError
from edgevit.files import whole

HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:%\[\]-]*")
FAILED = 255
"""The exit status of ssh where ssh itself failed."""

HINTS = (
    ("has changed", "the device's host key is not the known one: find out why before you run ssh-keygen -R"),
    ("Host key verification failed", "its host key is not known: run `ssh {host}` once by hand and compare the key"),
    (
        "Permission denied",
        "the device does not take your key: run ssh-copy-id, or name an IdentityFile in ~/.ssh/config",
    ),
    ("Could not resolve", "no such host: check `host` in devices.toml and ~/.ssh/config"),
    ("Connection refused", "nothing listens there: is sshd running, and the port right?"),
    ("timed out", "no answer: is the device on, and on this network?"),
    ("No route to host", "no answer: is the device on, and on this network?"),
)
"""What ssh says → what to do; the first that is found holds."""


@dataclass(frozen=True)
class Ssh:
    """A login on a device.

    host: as for `ssh`: a Host of ~/.ssh/config, or user@address. python, work: on the device, see
    `PythonTransport`. config: another file than ~/.ssh/config (`ssh -F`). connect_timeout_s: whole seconds.
    """

    host: str
    python: str
    work: str
    config: str = ""
    connect_timeout_s: int = 10
    _control: list[Path] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not HOST.fullmatch(self.host):
            raise MeasureError(f"host={self.host!r} is no host: give a Host of ~/.ssh/config, or user@address")
        if not self.work or self.work.startswith("~"):
            raise MeasureError(f"work={self.work!r}: give an absolute path, or one relative to the login's home")
        if not isinstance(self.connect_timeout_s, int) or self.connect_timeout_s < 1:
            raise MeasureError(f"connect_timeout_s={self.connect_timeout_s!r} must be a whole number of 1 or more")

    def options(self) -> list[str]:
        """What every call of ssh gets."""
        settings = {
            "BatchMode": "yes",
            "ConnectTimeout": str(self.connect_timeout_s),
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "3",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "LogLevel": "ERROR",
        }
        pairs = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        return [*(["-F", str(Path(self.config).expanduser())] if self.config else []), "-T", *pairs]

    def command(self, argv: Sequence[str]) -> list[str]:
        """One string for the login's shell; its words arrive as they are."""
        shared = ["-o", "ControlMaster=no", "-o", f"ControlPath={self._control[-1]}"] if self._control else []
        return ["ssh", *self.options(), *shared, self.host, shlex.join(["env", "LC_ALL=C", *argv])]

    @contextmanager
    def connect(self) -> Iterator[None]:
        """Open the shared connection; it ends with this process, however that ends."""
        self._check_host_keys()
        with tempfile.TemporaryDirectory(prefix="edgevit-ssh-") as folder:
            control = Path(folder) / "c"  # short: a socket's path has some hundred bytes
            shared = ["-o", "ControlMaster=yes", "-o", f"ControlPath={control}", "-o", "ControlPersist=no"]
            with open(Path(folder) / "stderr", "w+b") as stderr:
                # Its remote end is a `cat` on our pipe: when this process dies, it reads the end and goes.
                master = subprocess.Popen(
                    ["ssh", *self.options(), *shared, self.host, "cat"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,  # Ctrl-C is for us: the device must first be left as it was found
                )
                try:
                    self._wait(master, control, Path(folder) / "stderr")
                    self._control.append(control)
                    yield
                finally:
                    with suppress(ValueError):
                        self._control.remove(control)
                    _end(master)

    def _wait(self, master: subprocess.Popen[bytes], control: Path, stderr: Path) -> None:
        """Until the shared connection is up. Raises MeasureError."""
        deadline = time.monotonic() + self.connect_timeout_s + 20  # authentication has no time limit of its own
        while not control.exists():
            if master.poll() is not None:
                raise self._error("connecting", stderr.read_bytes())
            if time.monotonic() > deadline:
                raise self._error("connecting", b"timed out")
            time.sleep(0.01)

    def _check_host_keys(self) -> None:
        """Refuse a configuration that turns the check of host keys off."""
        shown = call(["ssh", *self.options(), "-G", self.host], "reading the ssh configuration")
        if shown.status:
            raise self._error("reading the ssh configuration", shown.stderr)
        if re.search(rb"(?im)^stricthostkeychecking (no|off|false)$", shown.stdout):
            raise MeasureError(
                f"ssh {self.host}: StrictHostKeyChecking is off for it, so nobody knows which machine would answer: "
                "remove that line from your ssh configuration"
            )

    def _error(self, step: str, stderr: bytes) -> MeasureError:
        """What ssh said, and what to do."""
        hints = [(found, hint.format(host=self.host)) for found, hint in HINTS]
        return MeasureError(f"ssh {self.host}: {step} failed: {Done(255, b'', stderr).hinted(hints)}")

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = 60) -> Done:
        """Run it; exit status 255 is taken for ssh's own."""
        done = call(self.command(argv), f"ssh {self.host}: running {argv[0]}", stdin, timeout_s=timeout_s)
        if done.status == FAILED:
            raise self._error(f"running {argv[0]}", done.stderr)
        return done

    def push(self, source: Path, target: str, timeout_s: float = 600) -> None:
        """Through `cat`, which every device has, into a file beside its place; renamed when whole."""
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1.part" && mv "$1.part" "$1" || { rm -f "$1.part"; exit 1; }'
        command = self.command(["sh", "-c", script, "push", target])
        with open(source, "rb") as stream:
            done = call(command, f"ssh {self.host}: copying {source.name}", stream, timeout_s=timeout_s)
        if done.status:
            raise self._error(f"copying {source.name} to {target}", done.stderr)

    def pull(self, source: str, target: Path, timeout_s: float = 600) -> None:
        """Through `cat` into a file beside its place; renamed when whole."""
        with whole(target) as part:
            with open(part, "wb") as stream:
                command = self.command(["cat", source])
                done = call(command, f"ssh {self.host}: fetching {source}", stdout=stream, timeout_s=timeout_s)
            if done.status:
                raise self._error(f"fetching {source}", done.stderr)


def _end(master: subprocess.Popen[bytes]) -> None:
    """Close the shared connection: the remote `cat` reads the end of its input. A signal alone may be slept through."""
    with suppress(OSError):
        master.stdin.close()  # type: ignore[union-attr]
    try:
        master.wait(3)
    except subprocess.TimeoutExpired:
        master.kill()
        master.wait()

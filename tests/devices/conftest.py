"""The loopback board: a real sshd of this test's own, on a free port, with its own keys and configuration."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgevit.devices import plan
from edgevit.devices.bench import Job

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def keygen(path: Path) -> str:
    """A new key pair; the public key without its comment."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, capture_output=True)
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


def children(pid: int) -> list[int]:
    """The processes below one, deepest last."""
    found = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [below for child in found for below in children(child)]


@dataclass
class Board:
    """A device that is this machine behind sshd. `config` is for `ssh -F`."""

    folder: Path
    config: Path
    server: subprocess.Popen
    bin: Path = field(init=False)

    def __post_init__(self):
        self.bin = self.folder / "bin"

    @property
    def table(self) -> dict:
        """Its table of devices.toml."""
        return {
            "transport": "ssh",
            "host": "board",
            "python": sys.executable,
            "work": str(self.folder / "work"),
            "config": str(self.config),
        }

    def drop_links(self):
        """What a pulled cable is to the device: every connection's sshd is gone at once."""
        for pid in children(self.server.pid):
            with suppress(FileNotFoundError, ProcessLookupError):  # it may end by itself meanwhile
                if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs sshd and ssh: apt-get install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # the service's start script makes it elsewhere
    folder = tmp_path_factory.mktemp("sshd")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    host_key, own_key = keygen(folder / "host"), keygen(folder / "user")
    keygen(folder / "other")
    (folder / "authorized").write_text(own_key + "\n")
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "bin").mkdir()
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nPasswordAuthentication no\nUsePAM no\nMaxStartups 100\n"
        f'SetEnv PATH="{path}" TMPDIR={folder} PYTHONPATH="{os.pathsep.join(p for p in sys.path if p)}"\n'
    )
    (folder / "ssh_config").write_text(
        f"Host board\n HostName 127.0.0.1\n Port {port}\n IdentityFile {folder}/user\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {folder}/known\n GlobalKnownHostsFile /dev/null\n"
    )
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", f"{folder}/sshd_config"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert server.poll() is None, server.stderr.read()
        time.sleep(0.02)
    yield Board(folder, folder / "ssh_config", server)
    server.terminate()
    server.communicate(timeout=20)


@pytest.fixture
def board(sshd):
    """The loopback board, with an empty work folder and no commands of its own."""
    shutil.rmtree(sshd.folder / "work", ignore_errors=True)
    shutil.rmtree(sshd.bin)
    sshd.bin.mkdir()
    return sshd


@pytest.fixture
def job(tmp_path):
    """Factory: a job, on the fake runner or another."""

    def make(name="b", latency_ms=2.0, runner="fake", **options):
        engine = tmp_path / f"{name}.engine"
        engine.write_text(name)
        given = {"latency_ms": latency_ms, **options} if runner == "fake" else options
        return Job(name, runner, engine, given, "images", (1, 3, 8, 8))

    return make


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Factory: a runner made of the given lines."""

    def make(text: str) -> str:
        path = tmp_path / "runner_made.py"
        path.write_text(text)
        monkeypatch.setitem(plan.RUNNERS, "made", path)
        return "made"

    return make

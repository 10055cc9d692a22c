"""Nodes of a Ray cluster on this machine, for tests and benchmarks."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START_S = 60


def ray_start(*flags):
    """A node of one CPU, until it is terminated."""
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1",
        "--object-store-memory=200000000", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats",
        *flags,
    ]  # fmt: skip
    # By default Ray's workers yield to every other process of the machine.
    return subprocess.Popen(command, env={**os.environ, "RAY_worker_niceness": "0"}, stdout=subprocess.DEVNULL)


def nodes_alive(address):
    """How many nodes a process of its own sees; Ray itself prints there when one dies."""
    code = (
        f"import sys; sys.stdout = sys.stderr; import ray; ray.init(address={address!r}, logging_level='ERROR')\n"
        "print(sum(n['Alive'] for n in ray.nodes()), file=sys.__stdout__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


@contextlib.contextmanager
def one_node():
    """Address of a cluster of one node, which owns no device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:
        node = ray_start("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={place}")
        try:
            wait_for(f"127.0.0.1:{port}", 1)
            yield f"127.0.0.1:{port}"
        finally:
            stop(node)


@contextlib.contextmanager
def owner_joins(head):
    """A second node, which owns the device."""
    wait_for(head, 1)
    node = ray_start(f"--address={head}", "--resources", '{"edgevit-device": 1}')
    try:
        wait_for(head, 2)
        yield head
    finally:
        stop(node)


def wait_for(address, count):
    """Until a cluster has so many nodes: those of an earlier test are gone too."""
    end = time.monotonic() + START_S
    while nodes_alive(address) != count:
        assert time.monotonic() < end, f"{address} has not {count} nodes"


def kill_node(node):
    """As a power cut does."""
    for pid in Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    node.kill()
    node.wait(30)


def stop(node):
    """End a node and its processes."""
    node.terminate()
    node.wait(30)


def of_ray(actor):
    """Processes of an actor, by the title Ray gives them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_text().startswith(f"ray::{actor}"):
                found.append(int(folder.name))
        except OSError:  # it ended
            continue
    return found

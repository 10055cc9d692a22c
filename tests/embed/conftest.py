"""Bundles of the demo model, and scenes to classify."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevit.data import read_dataset
from edgevit.embed.write import embed
from edgevit.evaluate import evaluate
from edgevit.pipeline import ExportSettings, export

ROOT = Path(__file__).resolve().parents[2]
COUNT = 50
PACKAGE = {"ort": "onnxruntime", "openvino": "openvino", "executorch": "executorch", "coreai": "coreai"}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """The first scenes of the demo's evaluation, and its calibration table."""
    pytest.importorskip("sklearn")
    pytest.importorskip("timm")
    from edgevit.demo.scenes import write_images

    calib, table = write_images(tmp_path_factory.mktemp("scenes"))
    return read_dataset(table).head(COUNT), calib


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory, scenes):
    """Factory: a bundle of the demo model. Shared: copy it before changing it."""
    made = {}

    def get(target, precision="fp32", reduce="none"):
        pytest.importorskip(PACKAGE[target])
        key = target, precision, reduce
        if key not in made:
            out = tmp_path_factory.mktemp("bundle") / target
            labels = out.with_name("names.txt")
            labels.write_text("".join(f"digit {i}\n" for i in range(10)))
            made[key] = export(
                ExportSettings(
                    model="demo", target=target, out=out, reduce=reduce, precision=precision, labels=labels,
                    calib=scenes[1] if precision.startswith("int8") else None,
                )
            ).bundle  # fmt: skip
        return made[key]

    return get


@pytest.fixture(scope="session")
def evaluated(demo_bundle, scenes):
    """Factory: the classes that `edgevit eval` predicts with a bundle."""
    return lambda *which: list(evaluate(demo_bundle(*which), scenes[0]).predicted)


@pytest.fixture
def made(tmp_path, demo_bundle):
    """Factory: an app folder of a bundle, to run or to spoil."""

    def write(app, *which):
        embed(demo_bundle(*which).folder, app, tmp_path / "app")
        return tmp_path / "app"

    return write


def block(page, language="", **instead):
    """The first block in a language (none: commands) of a guide of docs/embed, to the letter but for `instead`."""
    text = (ROOT / "docs/embed" / page).read_text()
    text = re.search(rf"^```{language}\n(.*?)```", text, re.DOTALL | re.MULTILINE)[1]
    for word, other in instead.items():
        assert re.search(rf"\b{word}\b", text), word
        text = re.sub(rf"\b{word}\b", str(other), text)
    return text


def shell(commands, env=None):
    """Command and environment of a reader's shell."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return {"args": ["bash", "-euc", commands], "env": {**plain, "PATH": path, **(env or {})}}


def follow(page, folder, env=None, **instead):
    """Run the commands of a guide; what they print."""
    done = subprocess.run(**shell(block(page, **instead), env), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def answers(port):
    """Whether something listens there."""
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


@contextlib.contextmanager
def serving(page, folder, port, **instead):
    """Run the commands of a guide whose last one serves, as long as the context; entered when the port answers."""
    with (folder / "out.txt").open("w+") as out:
        process = subprocess.Popen(
            **shell(block(page, **instead)), cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
        try:
            while not answers(port):
                assert process.poll() is None, (folder / "out.txt").read_text()[-3000:]
                time.sleep(0.2)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def change(bundle, edit):
    """Edit a manifest in place."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def rehashed(bundle, name, data):
    """Replace a file and its sha256: what only the engine itself can notice."""
    import hashlib

    (bundle / name).write_bytes(data)
    change(bundle, lambda m: m["files"].update({name: hashlib.sha256(data).hexdigest()}))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-100])


def smaller(manifest):
    """A manifest that asks for smaller images than its engine takes."""
    manifest["preprocess"].update(size=[64, 64])
    manifest["input"].update(shape=[1, 3, 64, 64])

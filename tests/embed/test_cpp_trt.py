"""The C++ app for TensorRT, compiled against a fake TensorRT, for there is no GPU here: its calls, what it keeps."""

import shutil
import subprocess
from pathlib import Path

import pytest

from edgevit.embed.write import embed
from tests.embed.conftest import change

FAKE = Path(__file__).parent / "fake_tensorrt"
SOURCES = ("bundle", "json", "preprocess", "sha256", "classifier", "engine_trt", "main")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")]


@pytest.fixture(scope="module")
def app(tmp_path_factory, demo_bundle):
    """The app of a bundle whose manifest says it is for trt."""
    folder = tmp_path_factory.mktemp("trt")
    bundle = shutil.copytree(demo_bundle("ort").folder, folder / "out")
    change(bundle, lambda m: m.update(target="trt", runtime={"name": "trt", "version": "built there", "options": {}}))
    embed(bundle, "cpp", folder / "app")
    return folder / "app"


@pytest.fixture(scope="module", params=["10", "11"])
def classify(request, app):
    """The program, for one TensorRT, under both sanitizers."""
    program = app / f"classify-{request.param}"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [str(app / f"src/{name}.cpp") for name in SOURCES]
    command = ["g++", *flags, f"-DNV_TENSORRT_MAJOR={request.param}", "-isystem", FAKE, *sources, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(app / "engines", ignore_errors=True)

    def run(**env):
        words = [program, "--top", "1", app / "bundle", app / "golden/0.ppm"]
        env = {"ASAN_OPTIONS": "detect_leaks=0", **env}  # needs ptrace, which containers lack
        return subprocess.run(words, env=env, capture_output=True, text=True, check=False)

    return run


def test_the_engine_is_built_once_and_kept(app, classify):
    done = classify()
    assert (done.returncode, done.stderr) == (0, "")
    assert " 3 " in done.stdout  # the fake's answer
    (plan,) = (app / "engines").iterdir()
    before = plan.stat()
    assert classify().returncode == 0
    assert plan.stat().st_mtime_ns == before.st_mtime_ns
    plan.write_bytes(b"of another")
    done = classify()
    assert done.returncode == 1
    assert done.stderr.startswith("classify: TensorRT 1")
    assert done.stderr.endswith(" cannot load its own engine: no plan\n")


def test_no_gpu_is_one_line(classify):
    done = classify(FAKE_NO_GPU="1")
    assert (done.returncode, done.stderr) == (1, "classify: finding a GPU failed: fake error\n")

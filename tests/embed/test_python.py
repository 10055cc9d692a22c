"""The Python app: runs without torch and edgevit, predicts what `edgevit eval` does, refuses what does not fit."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.embed.conftest import change, flip, rehashed, shorten, smaller

# A machine that has neither: what is not named here is what the app may import.
ALONE = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"{{name}} is not on this machine", name=name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, {app!r})
sys.argv = ["classifier", *sys.argv[1:]]
runpy.run_module("classifier", run_name="__main__", alter_sys=True)
"""


def run(app, *words, absent=("torch", "torchvision", "timm", "edgevit", "coreai_torch")):
    code = ALONE.format(absent=absent, app=str(app))
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)


def predicted(app, files, **settings):
    done = run(app, *files, "--top", 1, "--json", **settings)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return [found[str(f)][0]["index"] for f in files]


@pytest.fixture
def refusal(scenes):
    """Factory: the one line with which an app refuses its bundle."""

    def get(app, *words):
        done = run(app, scenes[0].files[0], *words)
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("classifier: ")
        return line

    return get


@pytest.mark.parametrize(
    "which",
    [
        ("ort", "fp32", "tome:r=10"),
        pytest.param(("openvino", "fp32"), marks=pytest.mark.slow),
        pytest.param(("ort", "int8"), marks=pytest.mark.slow),
        pytest.param(("openvino", "int8"), marks=pytest.mark.slow),
        pytest.param(("coreai", "fp32"), marks=pytest.mark.slow),
    ],
    ids=lambda which: "-".join(which[:2]),
)
def test_it_predicts_what_eval_does(made, evaluated, scenes, which):
    assert predicted(made("python", *which), scenes[0].files) == evaluated(*which)


@pytest.mark.slow
def test_executorch_brings_its_own_torch(made, evaluated, scenes):
    absent = ("edgevit", "timm", "torchvision")
    assert predicted(made("python", "executorch"), scenes[0].files, absent=absent) == evaluated("executorch")


@pytest.mark.parametrize(
    "which",
    [("ort", "fp32", "tome:r=10"), pytest.param(("openvino", "fp32"), marks=pytest.mark.slow)],
    ids=lambda which: which[0],
)
def test_its_own_tests_pass_where_nothing_else_is(made, which):
    app = made("python", *which)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_golden.py"]
    done = subprocess.run(command, cwd=app, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    (app / "golden/5.f32").write_bytes((app / "golden/6.f32").read_bytes())
    done = subprocess.run(command, cwd=app, capture_output=True, text=True, check=False)
    assert "5.ppm" in done.stdout, "the test cannot fail"


@pytest.mark.slow
def test_openvino_reads_the_tensor_where_it_lies(demo_bundle):
    from edgevit.embed.app_python.engine_openvino import Engine

    bundle = demo_bundle("openvino", "fp32")
    engine, tensor = Engine(bundle.folder, bundle.manifest, 1), np.zeros((1, 3, 96, 96), np.float32)
    first = engine.run(tensor)
    kept = first.copy()
    assert np.shares_memory(engine._request.get_input_tensor().data, tensor)
    assert not np.array_equal(engine.run(tensor + 1), first)
    assert np.array_equal(first, kept)


def test_no_file_of_the_app_names_edgevit_s_modules(made):
    app = made("python", "ort", "fp32", "tome:r=10")
    assert {p.name for p in (app / "classifier").iterdir()} == {
        "__init__.py", "__main__.py", "classifier.py", "engine.py", "errors.py", "preprocess.py", "trusted.py",
    }  # fmt: skip
    for path in app.rglob("*.py"):
        assert "import edgevit" not in path.read_text()
        assert "from edgevit" not in path.read_text()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda b: flip(b / "model.onnx"), "model.onnx is not the file that was exported"),
        (lambda b: shorten(b / "model.onnx"), "model.onnx is not the file that was exported"),
        (lambda b: (b / "model.onnx").unlink(), "model.onnx is missing"),
        (lambda b: (b / "labels.txt").write_text("a\n" * 10), "labels.txt is not the file"),
        (lambda b: (b / "manifest.json").unlink(), "it has no manifest.json"),
        (lambda b: shorten(b / "manifest.json"), "manifest.json cannot be read"),
        (lambda b: change(b, lambda m: m.update(schema=2)), "has schema 2; this loader reads schema 1"),
        (lambda b: change(b, lambda m: m["files"].update({"../x": "0"})), "is not a path inside the bundle"),
        (lambda b: change(b, lambda m: m.update(target="openvino")), "is for openvino, this app runs ort"),
        (lambda b: change(b, lambda m: m["runtime"].update(version="1.2.3")), "pip install onnxruntime==1.2.3"),
        (lambda b: change(b, lambda m: m["preprocess"].update(size=[64, 96])), "preprocessing makes [1, 3, 64, 96]"),
        (
            lambda b: change(b, smaller),
            "the engine takes (1, 3, 96, 96), the manifest says (1, 3, 64, 64)",
        ),
        (lambda b: change(b, lambda m: m["output"].update(shape=[1, 9])), "there are 10 labels"),
        (lambda b: change(b, lambda m: m.pop("input")), "is incomplete or malformed (KeyError('input'))"),
        (lambda b: change(b, lambda m: m.update(precision="int8", built_on={"machine": "pdp"})), "was built for pdp"),
        (lambda b: rehashed(b, "model.onnx", b"\x08garbage"), "onnxruntime cannot load model.onnx"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_a_bundle_that_does_not_fit_is_refused_with_one_line(refusal, made, spoil, line):
    app = made("python", "ort", "fp32", "tome:r=10")
    spoil(app / "bundle")
    assert line in refusal(app)


@pytest.mark.slow
def test_files_of_two_bundles_are_not_mixed(refusal, made, demo_bundle):
    app = made("python", "ort", "fp32", "tome:r=10")
    (app / "bundle/model.onnx").write_bytes((demo_bundle("ort", "fp32").folder / "model.onnx").read_bytes())
    assert "model.onnx is not the file that was exported" in refusal(app)
    whole = demo_bundle("openvino", "fp32").folder
    assert "the bundle is for openvino, this app runs ort; embed that bundle again" in refusal(app, "--bundle", whole)


def test_another_version_of_the_runtime_runs_when_asked(made, scenes):
    app = made("python", "ort", "fp32", "tome:r=10")
    change(app / "bundle", lambda m: m["runtime"].update(version="1.2.3"))
    assert run(app, scenes[0].files[0], "--any-version").returncode == 0


def test_an_image_that_is_none_is_one_line(refusal, made, tmp_path):
    app = made("python", "ort", "fp32", "tome:r=10")
    (tmp_path / "a.jpg").write_bytes(b"no image")
    assert "a.jpg is no image" in refusal(app, tmp_path / "a.jpg")

"""The C++ app: built with OpenVINO's wheel, exact to the bit, predicts what `edgevit eval` does, refuses."""

import json
import os
import random
import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from edgevit.bundle import Bundle
from edgevit.embed.golden import images
from edgevit.evaluate import evaluate
from edgevit.preprocess import INTERPOLATIONS, RESIZES, Preprocess
from tests.embed.conftest import change, flip, follow, rehashed, shorten, smaller

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("g++")), reason="needs cmake and g++"),
]
# Leaks are not looked for: containers without ptrace cannot.
ENV = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1"}


def call(*words, cwd=None):
    return subprocess.run(
        [*map(str, words)], cwd=cwd, env={**os.environ, **ENV}, capture_output=True, text=True, check=False
    )


def as_ppm(files, folder):
    """The same pixels in the one format that the examples read."""
    written = []
    for path in files:
        written.append(folder / f"{path.stem}.ppm")
        Image.open(path).convert("RGB").save(written[-1])
    return written


def classes(out):
    """The best class of each image, as printed."""
    return [int(i) for i in re.findall(r"^ +[\d.]+ % +(\d+) ", out, re.MULTILINE)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The app by its guide, checked for undefined behaviour. Shared: copy its bundle before changing it.

    Not under the address sanitizer: OpenVINO opens a library in a way (RTLD_DEEPBIND) that it refuses.
    """
    folder = tmp_path_factory.mktemp("cpp")
    flags = "-O0 -Wall -Wextra -Werror -fsanitize=undefined -fno-sanitize-recover=all"
    env = {**ENV, "CXXFLAGS": flags, "LDFLAGS": "-fsanitize=undefined", "CMAKE_BUILD_TYPE": "None"}
    out = follow("cpp.md", folder, env, MODEL="demo")
    assert "100% tests passed" in out
    assert "golden/2.ppm" in out
    return folder / "app"


@pytest.fixture(scope="module")
def sanitized(built):
    """All but the engine, under the address sanitizer too: manifest, hashes, images, preprocessing."""
    import openvino

    flags = [f"-DOpenVINO_DIR={Path(openvino.__path__[0]) / 'cmake'}", "-DSANITIZE=ON", "-DCMAKE_BUILD_TYPE=None"]
    for command in (["cmake", "-B", "safe", *flags], ["cmake", "--build", "safe", "--target", "golden_test"]):
        done = call(*command, cwd=built)
        assert done.returncode == 0, done.stdout + done.stderr
    return built / "safe" / "golden_test"


@pytest.fixture
def bundle(built, tmp_path):
    return shutil.copytree(built / "bundle", tmp_path / "bundle")


@pytest.fixture
def refusal(built):
    """Factory: the one line with which the app refuses."""

    def get(*words):
        done = call(built / "build/classify", *words)
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        # what OpenVINO's own readers log of a file that none of them knows stands before it
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("classify: ")]
        return line

    return get


def test_predictions_are_those_of_eval(built, scenes, tmp_path):
    done = call(built / "build/classify", "--top", 1, built / "bundle", *as_ppm(scenes[0].files, tmp_path))
    assert done.returncode == 0, done.stderr
    assert classes(done.stdout) == list(evaluate(Bundle.load(built / "bundle"), scenes[0]).predicted)


def test_the_golden_test_passes_and_can_fail(built, tmp_path):
    done = call("ctest", "--test-dir", "build", "--output-on-failure", cwd=built)
    assert done.returncode == 0, done.stdout
    golden = shutil.copytree(built / "golden", tmp_path / "golden")
    flip(golden / "6.f32")
    done = call(built / "build/golden_test", built / "bundle", golden)
    assert done.returncode == 1
    assert "6.ppm: differs" in done.stdout


def test_every_resize_is_exact(built, sanitized, tmp_path):
    """All filters and modes, shrinking, growing and both orders of the passes."""
    golden = tmp_path / "golden"
    golden.mkdir()
    for interpolation, resize in product(INTERPOLATIONS, RESIZES):
        spec = Preprocess(size=(24, 40), resize=resize, interpolation=interpolation, crop_pct=0.9)
        vectors = []
        for index, image in enumerate([*images(spec), Image.effect_noise((21, 190), 90).convert("RGB")]):
            image.save(golden / f"{index}.ppm")
            spec.tensor(image).astype("<f4").tofile(golden / f"{index}.f32")
            vectors.append({"image": f"{index}.ppm", "tensor": f"{index}.f32"})
        (golden / "golden.json").write_text(json.dumps({"vectors": vectors}))
        bundle = shutil.copytree(built / "bundle", tmp_path / "b", dirs_exist_ok=True)
        change(bundle, lambda m, spec=spec: m.update(preprocess=spec.to_dict()))
        done = call(sanitized, bundle, golden)
        assert done.returncode == 0, (interpolation, resize, done.stdout, done.stderr)
        assert done.stdout.count("exact") == 9


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda b: flip(b / "model.bin"), "model.bin is not the file that was exported"),
        (lambda b: shorten(b / "model.xml"), "model.xml is not the file that was exported"),
        (lambda b: (b / "model.bin").unlink(), "model.bin is missing"),
        (lambda b: shorten(b / "manifest.json"), "not valid JSON at byte"),
        (lambda b: change(b, lambda m: m.update(schema=2)), "has schema 2; this loader reads schema 1"),
        (lambda b: change(b, lambda m: m["files"].update({"../x": "0"})), "is not a path inside the bundle"),
        (lambda b: change(b, lambda m: m.update(target="ort")), "is for ort, this app runs openvino"),
        (lambda b: change(b, lambda m: m["runtime"].update(version="2020.1.0-x")), "checked with OpenVINO 2020.1.0"),
        (lambda b: change(b, smaller), "the engine's input is [1, 3, 96, 96], expected [1, 3, 64, 64]"),
        (
            lambda b: change(b, lambda m: m["output"].update(shape=[1, 9])),
            "the engine's output is [1, 10], expected [1, 9]",
        ),
        (lambda b: change(b, lambda m: m.pop("input")), "manifest.json lacks input"),
        (lambda b: change(b, lambda m: m["preprocess"].update(size=[1e300, 9])), "no whole number"),
        (lambda b: change(b, lambda m: m.update(precision="int8", built_on={"machine": "pdp"})), "was built for pdp"),
        (lambda b: rehashed(b, "model.xml", b"<garbage"), "OpenVINO cannot load model.xml"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_bundle_that_does_not_fit_is_refused_with_one_line(refusal, built, bundle, spoil, line):
    spoil(bundle)
    assert line in refusal(bundle, built / "golden/0.ppm")


def test_a_file_of_another_bundle_is_refused(refusal, built, bundle):
    (bundle / "model.bin").write_bytes((bundle / "model.xml").read_bytes())
    assert "model.bin is not the file that was exported" in refusal(bundle, built / "golden/0.ppm")


@pytest.mark.parametrize(
    "data", [b"", b"P6", b"P6 9999 9999 255 ", b"P6 2 2 255 abc", b"P6\n#", b"P5 1 1 255 a", b"\xff" * 99]
)
def test_an_image_that_is_none_is_refused(refusal, built, sanitized, tmp_path, data):
    (tmp_path / "a.ppm").write_bytes(data)
    assert "is no binary PPM" in refusal(built / "bundle", tmp_path / "a.ppm")
    (tmp_path / "golden.json").write_text('{"vectors": [{"image": "a.ppm", "tensor": "a.ppm"}]}')
    done = call(sanitized, built / "bundle", tmp_path)
    assert done.returncode == 1
    assert "is no binary PPM" in done.stdout


def test_garbage_in_a_manifest_never_reaches_a_sanitizer(built, sanitized, bundle):
    """A hundred damaged manifests: refused or, where the damage hits nothing that is read, accepted; never a crash."""
    whole = (bundle / "manifest.json").read_bytes()
    draw = random.Random(0)
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(len(data))
            if draw.random() < 0.3:
                data[at : at + draw.randint(1, 200)] = draw.randbytes(draw.randint(0, 20))
            else:
                data[at] = draw.choice(b'{}[],:"\\0-eu\x00\xff') if draw.random() < 0.7 else draw.randrange(256)
        (bundle / "manifest.json").write_bytes(data)
        done = call(sanitized, bundle, built / "golden")
        assert done.returncode in (0, 1), (done.returncode, bytes(data))
        assert "Sanitizer" not in done.stderr + done.stdout, bytes(data)
        assert "runtime error" not in done.stderr, bytes(data)
    deep = b"[" * 100_000
    (bundle / "manifest.json").write_bytes(deep)
    assert "nested too deep" in call(sanitized, bundle, built / "golden").stdout


@pytest.mark.skipif("ORT_ROOT" not in os.environ, reason="ORT_ROOT names no ONNX Runtime with headers")
def test_onnx_runtime_predicts_what_eval_does(made, scenes, evaluated, tmp_path):
    app = made("cpp", "ort", "fp32")
    for command in (["cmake", "-B", "build", f"-DORT_ROOT={os.environ['ORT_ROOT']}"], ["cmake", "--build", "build"]):
        done = call(*command, cwd=app)
        assert done.returncode == 0, done.stdout + done.stderr
    done = call(app / "build/classify", "--any-version", "--top", 1, app / "bundle", *as_ppm(scenes[0].files, tmp_path))
    assert classes(done.stdout) == evaluated("ort", "fp32")

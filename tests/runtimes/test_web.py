"""Target web in a real Chromium: the bundle's own page, worker and WASM, against eager and against Pillow."""

import gc
import io
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevit.commands.targets import survey
from edgevit.devices import runner_web
from edgevit.errors import MissingExtra, RuntimeRefusal
from edgevit.preprocess import INTERPOLATIONS, RESIZES, Preprocess
from edgevit.runtimes import runtime
from edgevit.runtimes.web import PAGE, Web, WebSession
from edgevit.stages import Graph, InputSpec
from tests.runtimes.devtools import Page, lacking

pytestmark = pytest.mark.skipif(bool(lacking()), reason=str(lacking()))


def picture(width, height, form="PNG"):
    """An image file with sharp edges and every value."""
    from PIL import Image

    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    pixels[: height // 3] = 255 * (pixels[: height // 3] > 128)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


@pytest.fixture(scope="module")
def session(engine):
    """The float engine, opened once."""
    target, built = engine("web")
    opened = target.open(built, threads=1)
    yield opened
    opened.browser.close()


def test_the_browser_computes_what_eager_does(session, eager, images):
    model = eager()
    with torch.no_grad():
        want = np.concatenate([model(torch.from_numpy(i)).numpy() for i in images])
    got = np.concatenate([session.run(i) for i in images])
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()  # float32 sums in another order
    assert session.browser.facts["backend"] == "wasm"
    assert session.browser.facts["isolated"] is True


@pytest.mark.parametrize(("width", "height"), [(53, 37), (21, 90), (40, 24)])
def test_the_page_prepares_an_image_to_the_bit_as_python_does(session, width, height):
    import PIL
    from PIL import Image

    if int(PIL.__version__.split(".")[0]) < 13 and (width, height) == (21, 90):
        pytest.skip("this Pillow does not shrink the height first where that is quicker")
    file = picture(width, height)
    image = Image.open(io.BytesIO(file))
    for interpolation, resize in product(INTERPOLATIONS, RESIZES):
        spec = Preprocess(size=(24, 40), resize=resize, interpolation=interpolation, crop_pct=0.9)
        _, answer = session.browser.ask("prepare", file, preprocess=spec.to_dict())
        got = np.frombuffer(answer, np.float32).reshape(3, 24, 40)
        assert np.array_equal(got, spec.tensor(image)), (interpolation, resize)


def test_a_jpeg_file_gives_the_outputs_that_python_gives(session):
    from PIL import Image

    file = picture(64, 48, "JPEG")
    spec = Preprocess(size=(32, 32))
    got = session.classify(file, spec.to_dict())
    want = session.run(spec.tensor(Image.open(io.BytesIO(file)))[None])
    # Both decode with libjpeg-turbo; another version may round a pixel by one step in 255
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


def test_a_broken_image_is_an_error_and_not_the_end(session, images):
    with pytest.raises(RuntimeRefusal, match=r"Chromium [0-9.]+ failed: .*decode"):
        session.classify(b"not an image", Preprocess(size=(32, 32)).to_dict())
    assert session.run(images[0]).shape == (1, 7)


@pytest.mark.slow
def test_int8_is_what_its_program_means(engine, graph, images):
    """8-bit weights without saturation: WASM sums products in 32 bits."""
    target, built = engine("web", "tome:r=3", "int8")
    program = graph("tome:r=3", "web").program.module()
    opened = target.open(built, threads=1)
    with torch.no_grad():
        want = np.concatenate([program(torch.from_numpy(i)).numpy() for i in images])
    got = np.concatenate([opened.run(i) for i in images])
    opened.browser.close()
    off = np.abs(got - want).max(axis=1) / np.abs(want).max()
    assert np.median(off) < 0.03  # as for ort in test_engines: a value on the edge of two integers


@pytest.mark.slow
def test_float16_is_near_eager_in_half_the_bytes(engine, eager, images):
    target, built = engine("web", "none", "fp16")
    opened = target.open(built, threads=1)
    with torch.no_grad():
        want = np.concatenate([eager()(torch.from_numpy(i)).numpy() for i in images])
    got = np.concatenate([opened.run(i) for i in images])
    opened.browser.close()
    assert np.abs(got - want).max() < target.policy.tolerance["fp16"] * np.abs(want).max()
    sizes = [(e.folder / "model.onnx").stat().st_size for e in (built, engine("web")[1])]
    assert sizes[0] < 0.7 * sizes[1]  # the graph itself is a good part of a tiny model


def test_the_bundle_is_a_folder_for_any_server_and_made_of_the_same_bytes(engine, graph, tmp_path):
    target, built = engine("web")
    again = target.build(graph(), tmp_path, "fp32")
    assert again.entry == "index.html"
    assert {"model.onnx", "engine.json", *PAGE, "ort/LICENSE", "ort/ThirdPartyNotices.txt"} <= set(again.files)
    assert again.files == built.files
    assert all((tmp_path / f).read_bytes() == (built.folder / f).read_bytes() for f in built.files)
    assert "Microsoft" in (tmp_path / "ort/LICENSE").read_text()
    on_disk = {str(p.relative_to(tmp_path).as_posix()) for p in tmp_path.rglob("*") if p.is_file()}
    assert on_disk == set(again.files)


@pytest.mark.slow
def test_webgpu_files_come_only_where_the_page_may_use_them(engine, graph, tmp_path):
    float_, int8 = engine("web")[1], engine("web", "tome:r=3", "int8")[1]
    assert "ort/ort.webgpu.min.mjs" in float_.files
    assert not [f for f in int8.files if "webgpu" in f or "asyncify" in f]
    without = runtime("web", {"backend": "wasm"}).build(graph(), tmp_path, "fp32")
    assert without.files == int8.files
    assert json.loads((tmp_path / "engine.json").read_text())["backends"] == ["wasm"]


def test_nothing_in_the_page_names_another_server(engine):
    built = engine("web")[1]
    for name in PAGE:
        text = (built.folder / name).read_text().replace("http://localhost:8000", "")
        assert "http:" not in text, name
        assert "https:" not in text, name


def test_impossible_settings_are_refused(graph, tmp_path, monkeypatch):
    with pytest.raises(RuntimeRefusal, match="backend=cuda is not one of auto, wasm"):
        Web(backend="cuda")
    with pytest.raises(MissingExtra, match="is not the folder of the npm package onnxruntime-web"):
        Web(ort_web=str(tmp_path)).version()
    (tmp_path / "package.json").write_text('{"name": "left-pad", "version": "1.0"}')
    with pytest.raises(RuntimeRefusal, match="is not the npm package onnxruntime-web; give its folder"):
        Web(ort_web=str(tmp_path)).version()
    (tmp_path / "package.json").write_text('{"name": "onnxruntime-web", "version": "9.9"}')
    with pytest.raises(RuntimeRefusal, match=r"onnxruntime-web 9.9 in .* lacks ort.wasm.min.mjs, .*@1.30"):
        Web(ort_web=str(tmp_path)).build(graph(), tmp_path, "fp32")
    twice = Graph(graph().program, InputSpec(2, 32, 32))
    with pytest.raises(RuntimeRefusal, match="this batch is 2"):
        Web().build(twice, tmp_path, "fp32")


def test_what_is_missing_is_named_with_the_line_to_type(engine, tmp_path, monkeypatch):
    target, built = engine("web")
    monkeypatch.setattr("edgevit.runtimes.web._places", lambda: [tmp_path])
    monkeypatch.delenv("EDGEVIT_ORT_WEB", raising=False)
    with pytest.raises(MissingExtra, match=r": npm install onnxruntime-web$"):
        target.version()
    assert next(row for row in survey() if row["name"] == "web")["install"] == "npm install onnxruntime-web"
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(MissingExtra, match=r"Chromium, which is not installed; install it .*CHROMIUM="):
        target.open(built)
    assert "apt-get install chromium" in target.runs_here()


@pytest.mark.slow
def test_a_damaged_model_is_named(engine, tmp_path):
    from dataclasses import replace
    from shutil import copytree

    target, built = engine("web")
    copytree(built.folder, tmp_path / "b")
    (tmp_path / "b/model.onnx").write_bytes(b"broken")
    with pytest.raises(RuntimeRefusal, match=r"onnxruntime-web cannot load .*model\.onnx: "):
        target.open(replace(built, folder=tmp_path / "b"))


def alive(profile):
    """Processes whose command line names a browser's profile."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [line.parent.name] * (profile.encode() in line.read_bytes())
        except OSError:
            continue
    return found


def gone(profile, seconds=15):
    end = time.monotonic() + seconds
    while alive(profile) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(profile)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_no_browser_outlives_its_session(engine):
    target, built = engine("web")
    opened = target.open(built, threads=1)
    profile = opened.browser.profile
    assert alive(profile)
    del opened
    gc.collect()
    assert gone(profile)
    assert not Path(profile).exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.slow
def test_no_browser_outlives_a_killed_process(engine, tmp_path):
    _, built = engine("web")
    code = (
        "import os, pathlib, signal, sys; from edgevit.devices.runner_web import Browser;"
        "b = Browser(pathlib.Path(sys.argv[1]), 1); print(b.profile, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(built.folder)],
        capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.strip().startswith(str(tmp_path)), done.stderr
    assert gone(done.stdout.strip())


def test_only_the_page_with_the_token_gets_jobs(tmp_path):
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    (tmp_path / "index.html").write_text("hello")
    server = runner_web.Server(tmp_path)
    try:
        with urlopen(f"{server.address}/index.html") as answer:
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        for request in ("check/guess/job", Request(f"{server.address}/check/guess/result", data=b"x")):
            with pytest.raises(HTTPError, match="404"):
                urlopen(request if isinstance(request, Request) else f"{server.address}/{request}")
    finally:
        server.shutdown()
        server.server_close()


def test_the_runner_leaves_a_record(engine, tmp_path):
    _, built = engine("web")
    plan = {"seed": 0, "warmup_s": 0.05, "min_samples": 20, "min_seconds": 0.05, "max_seconds": 5}
    job = {**plan, "engine": str(built.folder / built.entry), "input": {"name": "images", "shape": [1, 3, 32, 32]}}
    job |= {"options": {**built.options, "threads": 1}, "out": str(tmp_path / "record.json")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-I", runner_web.__file__, str(tmp_path / "job.json")], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["runtime"] == "onnxruntime-web"
    assert record["browser"].startswith("Chromium 1")
    assert record["threads"] == 1
    assert record["applied"]["isolated"] is True
    assert len(record["samples_ms"]) >= 20
    assert all(value > 0 for value in [*record["samples_ms"], record["load_ms"], record["first_ms"]])
    assert record["tick_ms"] <= 0.1  # an isolated page's clock
    assert record["warmup"]["samples"] >= 10
    assert record["peak_memory_bytes"] >= record["load_memory_bytes"] > 50e6  # a page with 14 MB of WASM, compiled


@pytest.mark.slow
def test_webgpu_computes_what_eager_does_on_a_software_gpu(engine, eager, images):
    """SwiftShader is Chromium's own GPU in software: slow, and real WebGPU."""
    _, built = engine("web")
    flags = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
    opened = WebSession(built, 1, "webgpu", flags)
    assert opened.browser.facts["backend"] == "webgpu"
    with torch.no_grad():
        want = eager()(torch.from_numpy(images[0])).numpy()
    got = opened.run(images[0])
    opened.browser.close()
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()  # float32, whose sums and exp are the shader's


@pytest.mark.slow
@pytest.mark.parametrize("isolated", [True, False])
def test_a_person_sees_the_answer_and_what_it_ran_on(engine, tmp_path, isolated):
    """In both kinds of server: edgevit's, and one without the headers that threads need."""
    from shutil import copytree

    built = engine("web")[1]
    copytree(built.folder, tmp_path / "b")
    file = picture(64, 48)
    (tmp_path / "b/it.png").write_bytes(file)
    (tmp_path / "b/labels.txt").write_text("\n".join(f"thing {i}" for i in range(7)))
    spec = Preprocess(size=(32, 32))
    (tmp_path / "b/manifest.json").write_text(json.dumps(manifest(spec)))
    opened = WebSession(built, 1)
    want = opened.classify(file, spec.to_dict())[0]
    opened.browser.close()
    with Page(tmp_path / "b", "?image=it.png", isolated=isolated) as page:
        page.wait("document.querySelectorAll('#results .label').length")
        labels = page.value("[...document.querySelectorAll('#results .label')].map((e) => e.textContent)")
        shown = page.value("document.body.innerText")
        page.value("document.getElementById('measure').click()")
        page.wait("document.getElementById('measured').textContent.startsWith('median')")
    assert labels == [f"thing {i}" for i in np.argsort(-want)[:5]]
    assert "a picture model" in shown
    assert f"{100 * np.exp(want - want.max()).max() / np.exp(want - want.max()).sum():.1f} %" in shown
    assert ("Cross-Origin-Opener-Policy" in shown) is not isolated
    assert isolated or "1 thread " in shown
    assert "no WebGPU" in shown


def manifest(spec):
    """What the page reads of it."""
    return {
        "model": {"name": "a picture model", "arch": "vit"}, "precision": "fp32", "labels": "labels.txt",
        "schedule": {"text": "none", "macs": {"dense": 1, "reduced": 1}}, "preprocess": spec.to_dict(),
        "check": {"sqnr_db": 100.0, "images": 8},
    }  # fmt: skip

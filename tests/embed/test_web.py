"""The web app in a real Chromium: predicts what `edgevit eval` does, works offline, refuses changed files."""

import base64
import json
import time

import numpy as np
import pytest

from edgevit.embed.write import embed
from edgevit.evaluate import evaluate
from edgevit.pipeline import ExportSettings, export
from tests.embed.conftest import change, flip
from tests.runtimes.devtools import Page, lacking

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(lacking()), reason=str(lacking()))]
LOADED = "window.classifier && 1"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    pytest.importorskip("timm")
    out = tmp_path_factory.mktemp("web") / "bundle"
    return export(ExportSettings(model="demo", target="web", out=out, options={"backend": "wasm"})).bundle


@pytest.fixture
def site(bundle, tmp_path):
    embed(bundle.folder, "web", tmp_path / "site")
    return tmp_path / "site"


def refused(site):
    with Page(site, isolated=False) as page:
        page.wait("!document.getElementById('error').hidden")
        assert page.value("window.classifier === undefined")
        return page.value("document.getElementById('error').textContent")


def predict(page, path):
    data = base64.b64encode(path.read_bytes()).decode()
    return page.value(f"classifier.run(bytes('{data}')).then((found) => found.best[0])")


BYTES = "window.bytes = (text) => new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]); 1"


def test_it_predicts_what_eval_does_with_threads_from_a_plain_server(bundle, site, scenes):
    with Page(site, isolated=False) as page:
        page.wait(LOADED)
        assert page.value("self.crossOriginIsolated"), "the service worker isolates the page"
        page.value(BYTES)
        found = [predict(page, path)["index"] for path in scenes[0].files]
        data = base64.b64encode(scenes[0].files[0].read_bytes()).decode()
        page.value(f"classifier.tensor(bytes('{data}')).then((found) => {{ window.tensor = found; }})")
        for _ in range(2):  # the tensor stays the caller's
            best = page.value("classifier.runTensor(tensor).then((found) => found.best[0])")
            assert best == predict(page, scenes[0].files[0])
    assert found == list(evaluate(bundle, scenes[0]).predicted)


def test_it_works_without_a_network(site, scenes):
    """From a server that isolates: the debugger loses a page that isolates itself, and then is loaded again."""
    with Page(site) as page:
        page.wait(LOADED)
        page.value(BYTES)
        want = predict(page, scenes[0].files[0])
        page.server.shutdown()
        page.server.server_close()
        page.ask("Page.reload")
        time.sleep(0.5)  # the old page still answers
        page.wait("!window.bytes && window.classifier && 1")
        page.value(BYTES)
        assert predict(page, scenes[0].files[0]) == want


def test_the_golden_tensors_are_exact(site):
    index = json.loads((site / "golden/golden.json").read_text())
    with Page(site, isolated=False) as page:
        page.wait(LOADED)
        page.value(BYTES)
        for vector in index["vectors"]:
            data = base64.b64encode((site / "golden" / vector["image"]).read_bytes()).decode()
            script = f"""(async () => {{
              const bytes = new Uint8Array((await classifier.tensor(window.bytes('{data}'))).buffer);
              let text = ""; for (const b of bytes) text += String.fromCharCode(b);
              return btoa(text);
            }})()"""
            got = np.frombuffer(base64.b64decode(page.value(script)), "<f4")
            assert np.array_equal(got, np.fromfile(site / "golden" / vector["tensor"], "<f4")), vector["image"]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda s: flip(s / "bundle/model.onnx"), "bundle/model.onnx is not the file that was embedded"),
        (lambda s: (s / "bundle/worker.js").write_text("//"), "bundle/worker.js is not the file that was embedded"),
        (lambda s: (s / "bundle/ort/ort.wasm.min.mjs").unlink(), "bundle/ort/ort.wasm.min.mjs is missing (HTTP 404)"),
        (lambda s: change(s / "bundle", lambda m: m.update(labels=None)), "bundle/manifest.json is not the file"),
    ],
    ids=["flipped", "swapped", "missing", "manifest"],
)
def test_changed_files_are_refused_before_anything_is_loaded(site, spoil, line):
    spoil(site)
    assert line in refused(site)


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda m: m.update(schema=2), "has schema 2; this loader reads schema 1"),
        (lambda m: m["runtime"].update(version="1.2.3"), "was checked with onnxruntime-web 1.2.3"),
        (lambda m: m["output"].update(shape=[1, 9]), "the engine gives [1,10], the manifest says [1,9]"),
        (lambda m: m["preprocess"].update(size=[64, 96]), "preprocessing makes [1,3,64,96]"),
    ],
    ids=["schema", "version", "classes", "size"],
)
def test_a_bundle_that_does_not_fit_is_refused(site, edit, line):
    """As if someone had embedded such a bundle: the hashes agree."""
    from edgevit.hashes import sha256_file

    before = sha256_file(site / "bundle/manifest.json")
    change(site / "bundle", edit)
    worker = site / "sw.js"
    worker.write_text(worker.read_text().replace(before, sha256_file(site / "bundle/manifest.json")))
    assert line in refused(site)


def test_the_runtime_in_the_bundle_is_no_part_of_the_engine(bundle, tmp_path):
    found = embed(bundle.folder, "web", tmp_path / "sized")
    carried = sum(p.stat().st_size for p in (bundle.folder / "ort").iterdir())
    assert found.runtime_bytes == carried > 1e7
    assert found.engine_bytes == bundle.size_bytes + (bundle.folder / "manifest.json").stat().st_size - carried


def test_nothing_of_the_app_names_another_server(site):
    for path in site.glob("*.*"):
        if path.suffix in (".html", ".js", ".css"):
            assert "http:" not in path.read_text()
            assert "https:" not in path.read_text()


def test_a_person_sees_the_answer(site, scenes, tmp_path):
    with Page(site, isolated=False) as page:
        page.wait(LOADED)
        page.value(BYTES)
        data = base64.b64encode(scenes[0].files[0].read_bytes()).decode()
        page.value(
            f"""const files = new DataTransfer(); files.items.add(new File([bytes('{data}')], 'a.png'));
            window.dispatchEvent(new DragEvent('drop', {{dataTransfer: files}})); 1"""
        )
        page.wait("document.querySelectorAll('#results .label').length === 5")
        assert "verified" in page.value("document.body.innerText")
        page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000

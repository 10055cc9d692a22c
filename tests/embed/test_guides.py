"""The guides of docs/embed, followed to the letter where this platform can (C++: tests/embed/test_cpp.py)."""

import socket

import pytest

from tests.embed.conftest import block, follow, serving
from tests.runtimes.devtools import Page, lacking


@pytest.mark.slow
def test_the_python_guide(tmp_path, scenes):
    out = follow("python.md", tmp_path, MODEL="demo", **{"image.jpg": scenes[0].files[0]})
    assert "class " in out
    assert "3 passed" in out


@pytest.mark.slow
@pytest.mark.skipif(bool(lacking()), reason=str(lacking()))
def test_the_web_guide(tmp_path):
    """Its commands, its page, and its lines for a page of one's own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # 8000 may be another's
    server = {"http.server": f"http.server {port} --bind 127.0.0.1"}
    with serving("web.md", tmp_path, port, MODEL="demo", **server):
        own = "const blob = await (await fetch('golden/2.png')).blob();\n" + block("web.md", "js")
        (tmp_path / "app/own.html").write_text(f'<script type="module">{own}\nwindow.best = best;</script>')
        with Page() as page:
            page.go(f"http://localhost:{port}")
            page.wait("window.classifier && 1")
            assert page.value("self.crossOriginIsolated")
            page.value("""fetch("golden/2.png").then((r) => r.blob()).then((image) => {
              const files = new DataTransfer();
              files.items.add(new File([image], "a.png"));
              window.dispatchEvent(new DragEvent("drop", { dataTransfer: files }));
            })""")
            page.wait("document.querySelectorAll('#results .label').length === 5")
            shown = page.value("[...document.querySelectorAll('#results .label')].map((e) => e.textContent)")
            assert "inference" in page.value("document.getElementById('times').textContent")
            page.ask("Page.navigate", url=f"http://localhost:{port}/own.html")
            page.wait("window.best && 1")
            assert page.value("best.map((one) => one.label)") == shown
            assert set(page.value("Object.keys(best[0])")) == {"index", "label", "score", "share"}


def test_a_guide_that_fails_fails_its_test(tmp_path):
    with pytest.raises(AssertionError):
        follow("python.md", tmp_path, {"PATH": "/usr/bin:/bin"}, MODEL="demo")

"""The server of the page that measures: what it gives, to whom, and what it takes."""

import json
import socket
import threading
from http.client import HTTPConnection

import pytest

from edgevit.devices import page_server
from edgevit.devices.page_server import PageServer


@pytest.fixture
def server(tmp_path):
    (tmp_path / "worker.js").write_text("it")
    (tmp_path / "secret").write_text("no")
    found = PageServer(("127.0.0.1", 0), [(tmp_path, {"worker.js": ""})])
    yield found
    found.end("over")


def ask(server, path, method="GET", body=None, headers=None):
    """Status, headers and body of an answer."""
    link = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    link.request(method, path, body, headers or {})
    answer = link.getresponse()
    return answer.status, answer.headers, answer.read()


def test_everything_is_under_the_secret_path(server):
    top = f"/{server.token}"
    status, headers, body = ask(server, f"{top}/")
    assert (status, b"measure.js" in body) == (200, True)
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Cache-Control"] == "no-store"
    status, headers, body = ask(server, f"{top}/bundle/0/worker.js")
    assert (status, body) == (200, b"it")
    assert "immutable" in headers["Cache-Control"]
    inside = (
        "bundle/0/secret",
        "bundle/0/../secret",
        "bundle/1/worker.js",
        "bundle/x/worker.js",
        "worker.js",
        "page/x",
    )
    for path in ("/", "/guess/", "/guess/bundle/0/worker.js", top, *(f"{top}/{name}" for name in inside)):
        assert ask(server, path)[0] == (200 if path == top else 404), path
    assert ask(server, f"{top}/", "HEAD")[0] == 404
    for path in ("/guess/hello", "/hello", f"{top}/", f"{top}/page/guess/result"):
        assert ask(server, path, "POST", b"{}")[0] == 404, path
    assert server.page is None


def test_one_page_at_a_time_posts_what_was_asked_and_no_more(server):
    top = f"/{server.token}"
    assert ask(server, f"{top}/hello", "POST", b"[]")[0] == 400
    # Bodies that are refused are not sent: the server closes without reading one.
    large = {"Content-Length": str(page_server.HELLO_BYTES + 1)}
    assert ask(server, f"{top}/hello", "POST", b"", large)[0] == 413
    status, _, number = ask(server, f"{top}/hello", "POST", b'{"user_agent": "A"}')
    mine = f"{top}/page/{number.decode()}"
    assert status == 200
    assert ask(server, f"{top}/hello", "POST", b'{"user_agent": "A"}')[0] == 409
    assert ask(server, f"{mine}/result", "POST", b"{}\n")[0] == 409  # nothing was asked
    line = socket.socket()
    server.page.lines.add(line)  # it is there
    answers = []
    asked = threading.Thread(target=lambda: answers.append(server.ask(server.page, ({"kind": "x"}, b"body"), 20)))
    asked.start()
    for _ in range(2):  # a page that lost the answer asks again
        status, headers, body = ask(server, f"{mine}/job")
        assert (status, json.loads(headers["x-job"]), body) == (200, {"kind": "x"}, b"body")
    large = {"Content-Length": str(page_server.RESULT_BYTES + 1)}
    assert ask(server, f"{mine}/result", "POST", b"", large)[0] == 413
    assert ask(server, f"{mine}/result", "POST", None, {"Transfer-Encoding": "chunked"})[0] == 411
    assert ask(server, f"{mine}/result", "POST", b'{"a": 1}\nvalues')[0] == 204
    asked.join(20)
    assert answers == [({"a": 1}, b"values")]
    server.page.lines.clear()
    line.close()
    server.page.since -= 10
    assert ask(server, f"{top}/hello", "POST", b'{"user_agent": "B"}')[0] == 403
    assert ask(server, f"{top}/hello", "POST", b'{"user_agent": "A"}')[0] == 200
    assert ask(server, f"{mine}/job")[0] == 410

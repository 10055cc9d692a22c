"""A person's browser as a device: a real Chromium opens the page, measures, is hidden, closed and refused."""

import json
import ssl
import subprocess
import tempfile
import threading
import time
from urllib.request import urlopen

import numpy as np
import pytest

from edgevit import cli
from edgevit.bundle import Bundle
from edgevit.devices import config, history, in_browser, page_server
from edgevit.devices.bench import BenchPlan, profile
from edgevit.devices.plan import Setup
from edgevit.errors import MeasureError
from edgevit.measure import job
from tests.devices.bundles import bundle, web_bundle
from tests.runtimes.devtools import Page, lacking

needs_browser = pytest.mark.skipif(bool(lacking()), reason=str(lacking()))
SHORT = BenchPlan(rounds=1, warmup_s=0, min_samples=5, min_seconds=0)
LONG = BenchPlan(rounds=2, warmup_s=0, min_samples=5, min_seconds=0.6, threads=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("web")
    return web_bundle(root / "fast"), web_bundle(root / "dense")


@pytest.fixture(scope="module")
def chromium():
    """One browser for all: a page that goes from address to address."""
    with Page() as page:
        yield page


@pytest.fixture(autouse=True)
def soon(monkeypatch, tmp_path_factory):
    """A page that is gone is missed at once; the lock is this test's own, for another session may measure."""
    monkeypatch.setattr(page_server, "GRACE_S", 0.3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("lock")))


class Running:
    """A benchmark in a thread, and what it tells."""

    def __init__(self, folders, plan, setup=None, **keys):
        self.device = config.make("phone", {"transport": "browser", "wait_s": 20, **keys}, "test")
        self.told, self.found, self.error = [], None, None
        self.jobs = [job(Bundle.load(folder), None, True) for folder in folders]
        self.thread = threading.Thread(target=self.measure, args=(plan, setup))
        self.thread.start()

    def measure(self, plan, setup):
        try:
            self.found = profile(self.jobs, None, plan, None, self.device, setup, self.told.append)
        except Exception as error:
            self.error = error

    def hears(self, text, count=1):
        """Wait for the nth thing of that kind that is told; it."""
        end = time.monotonic() + 30
        while len(found := [line for line in self.told if text in line]) < count:
            assert time.monotonic() < end, (self.told, self.error)
            time.sleep(0.02)
        return found[-1]

    @property
    def url(self):
        return self.hears("open http").partition("open ")[2].split()[0]

    def end(self):
        self.thread.join(60)
        return self.found

    def fails(self):
        self.thread.join(60)
        assert isinstance(self.error, MeasureError), (self.error, self.found)
        assert "\n" not in str(self.error)
        return str(self.error)


def in_round(page, number):
    page.wait(f"document.getElementById('state')?.textContent.includes('round {number} ')")


@needs_browser
@pytest.mark.slow
def test_two_bundles_from_the_command_line_to_history_and_report(folders, chromium, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("EDGEVIT_HOME", str(tmp_path))
    assert cli.run(["devices", "add", "phone", "browser", "wait_s=30"]) == 0
    capsys.readouterr()
    fast, dense = map(str, folders)
    words = ["profile", fast, "--against", dense, "--device", "phone", "--rounds", "1", "--threads", "1", "--json"]
    status, out = opened(words, chromium, capsys)
    found = json.loads(out)
    assert status == 0
    assert [(r["bundle"], r["rounds"], r["threads"]) for r in found["results"]] == [("dense", 1, 1), ("fast", 1, 1)]
    assert all(r["samples"] >= 64 and r["median_ms"] > 0 and r["peak_memory_bytes"] is None for r in found["results"])
    assert found["fake"] is False
    assert found["device"]["name"] == "phone"
    told = found["conditions"]["browser"]
    assert "Chrome/" in told["user_agent"]
    assert (told["isolated"], told["simd"], told["cores"] >= 1) == (True, True, True)
    assert all(o["relative_diff"] < 1e-6 for o in found["conditions"]["outputs"].values())  # relu rounds nothing
    assert found["conditions"]["rejected_rounds"] == {}
    assert cli.run(["history", "--device", "phone", "--json"]) == 0
    assert cli.run(["report", "-o", str(tmp_path / "report")]) == 0
    assert "Chrome/" in (tmp_path / "report" / "report.html").read_text()
    line = history.session(history.newest())["rounds"][0]
    assert (line["placement"], line["applied"]["backend"], line["side"]) == ("wasm", "wasm", "against")
    assert line["unverified"] == ["device", "clocks"]  # a browser names neither


def opened(words, chromium, capsys):
    """Run a command that asks for a browser, in a thread; its status and standard output."""
    status = []
    thread = threading.Thread(target=lambda: status.append(cli.run(words)))
    thread.start()
    err, out = "", ""
    while "edgevit: open http" not in err and thread.is_alive():
        more = capsys.readouterr()
        err, out = err + more.err, out + more.out
        time.sleep(0.02)
    assert "open http" in err, err
    chromium.go(err.partition("open ")[2].split()[0])
    thread.join(60)
    return status[0], out + capsys.readouterr().out


@needs_browser
def test_a_check_says_what_the_browser_is(chromium, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config.add("desk", {"transport": "browser"})
    status, out = opened(["devices", "check", "desk", "--json"], chromium, capsys)
    found = json.loads(out)
    assert status == 0
    assert found["browser"]["isolated"] is True
    assert found["findings"] == []


@needs_browser
def test_a_round_whose_page_was_hidden_is_measured_again(folders, chromium):
    running = Running(folders[:1], LONG)
    chromium.go(running.url)
    in_round(chromium, 1)
    chromium.hide()
    chromium.show()
    found = running.end().to_json()
    assert found["conditions"]["rejected_rounds"] == {"hidden": 1}
    assert "rounds that were rejected and measured again: 1 whose page was hidden" in found["notes"]
    assert found["results"][0]["rounds"] == 2
    assert "does not count; bring it to the front" in running.hears("hidden")


@needs_browser
@pytest.mark.slow
def test_a_page_that_is_closed_and_opened_again_loses_one_round(folders, chromium):
    running = Running(folders[:1], LONG)
    chromium.go(running.url)
    in_round(chromium, 2)
    chromium.go("about:blank")
    assert "round 2 of 2: the page was closed; what was measured is kept, open http" in running.hears("closed")
    chromium.go(running.url)
    found = running.end().to_json()
    assert found["conditions"]["rejected_rounds"] == {"closed": 1}
    assert found["results"][0]["rounds"] == 2


@needs_browser
@pytest.mark.slow
def test_a_page_that_stays_closed_ends_the_session(folders, chromium):
    running = Running(folders[:1], LONG, wait_s=3)
    chromium.go(running.url)
    in_round(chromium, 1)
    chromium.go("about:blank")
    assert "phone: nobody opened the page again within 3 s" in running.fails()


@needs_browser
def test_what_the_browser_cannot_load_is_said(folders, chromium, tmp_path):
    damaged = web_bundle(tmp_path / "damaged")
    running = Running([damaged], SHORT)
    (damaged / "model.onnx").write_bytes(b"broken")  # after it was verified
    chromium.go(running.url)
    assert "damaged: the check before the first round: the browser says: " in running.fails()
    chromium.wait("document.getElementById('state').textContent.startsWith('edgevit ended: damaged')")


@needs_browser
def test_a_browser_that_computes_something_else_is_refused(folders, chromium, monkeypatch):
    here = in_browser._outputs_here
    monkeypatch.setattr(in_browser, "_outputs_here", lambda *a: (here(*a)[0], np.roll(here(*a)[1], 1)))
    running = Running(folders[:1], SHORT)
    chromium.go(running.url)
    assert "on wasm (the bundle was built without WebGPU) its outputs differ from ONNX" in running.fails()


def test_the_page_comes_over_https_with_the_users_certificate(tmp_path, folders):
    files = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    try:
        made = f"-nodes -days 1 -subj /CN=localhost -out {files['cert']} -keyout {files['key']}"
        command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 {made}"
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    running = Running(folders[:1], SHORT, wait_s=2, **files)
    context = ssl.create_default_context(cafile=files["cert"])
    context.check_hostname = False
    assert running.url.startswith("https://127.0.0.1:")
    with urlopen(running.url, context=context) as answer:
        assert b"measure.js" in answer.read()
    assert "nobody opened the page within 2 s; does the device reach 127.0.0.1:" in running.fails()
    (tmp_path / "key.pem").write_text("none")
    assert "cannot be used for https" in Running(folders[:1], SHORT, **files).fails()


def test_what_does_not_run_in_a_browser_is_refused_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config.add("phone", {"transport": "browser"})
    words = ["profile", str(bundle(tmp_path / "native")), "--device", "phone"]
    assert cli.run(words) == 1
    assert capsys.readouterr().err == (
        "edgevit: native: target ort does not run in a browser: export with --target web\n"
    )


GOOD = {
    "version": "1", "backend": "wasm", "reason": "r", "cores": 1, "isolated": True, "threads": 1,
    "load_ms": 1, "first_ms": 1, "warmup": {"seconds": 0, "stable": True}, "samples_ms": [1.5], "median_ms": 1.5,
    "tick_ms": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({}, None),
        ({"samples_ms": [0, 1.0]}, r"shorter than the step of the browser's clock \(0.1 ms\): serve the page"),
        ({"samples_ms": []}, "holds no samples"),
        ({"samples_ms": ["1"]}, "not positive numbers"),
        ({"samples_ms": [1, float("nan")]}, "not positive numbers"),
        ({"samples_ms": 3}, r"posted no round \(TypeError"),
        ({"warmup": None}, r"values that are none: warmup.seconds=None, warmup.stable=None"),
        ({"warmup": {"seconds": 0, "stable": "yes"}}, "values that are none: warmup.stable='yes'"),
        ({"threads": "1"}, "values that are none: threads='1'"),
        ({"load_ms": float("inf")}, "values that are none: load_ms=inf"),
        ({"tick_ms": None}, "without the step of its clock"),
    ],
)
def test_a_round_is_taken_only_with_its_numbers(changes, match):
    if match is None:
        assert in_browser._round({}, GOOD, "b", "here")["samples_ms"] == [1.5]
        return
    with pytest.raises(MeasureError, match=f"here: .*{match}"):
        in_browser._round({}, {**GOOD, **changes}, "b", "here")
    with pytest.raises(MeasureError, match="posted no round"):
        in_browser._round({}, {}, "b", "here")


@needs_browser
def test_clocks_are_not_held_in_a_browser(folders, chromium):
    running = Running(folders[:1], SHORT, Setup({"clocks": "highest"}))
    chromium.go(running.url)
    assert "nothing holds clocks of a browser: leave --lock-clocks and --power-mode out" in running.fails()


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"host": "0.0.0.0"}, "no address that a device could open"),
        ({"host": "::"}, "no address that a device could open"),
        ({"port": 70000}, "port=70000 must be"),
        ({"backend": "cuda"}, "not one of auto, wasm, webgpu"),
        ({"cert": "a.pem"}, "both cert and key"),
        ({"wait_s": 0}, "1 or more seconds"),
        ({"hots": "x"}, r"key 'hots' \(did you mean host\?\)"),
    ],
)
def test_values_that_make_no_sense(keys, match):
    with pytest.raises(MeasureError, match=match):
        config.make("phone", {"transport": "browser", **keys}, "test")


def test_an_address_that_is_not_this_machines(folders):
    assert "host must be an address of this machine" in Running(folders[:1], SHORT, host="192.0.2.1").fails()

"""Sessions in the runner app of an iPhone, on a stand-in of pymobiledevice3 whose phone is a folder with a fake app."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from edgevit.bundle import Bundle
from edgevit.devices import bench, config
from edgevit.devices.app_project import SOURCES, write_app
from edgevit.devices.bench import BenchPlan
from edgevit.devices.lock import session_lock
from edgevit.devices.plan import IN_APP, Setup
from edgevit.errors import MachineBusy, MeasureError
from edgevit.measure import job
from edgevit.runtimes import runtime
from tests.devices.test_phones import APP, UDID
from tests.embed.test_phones import parsed

STAND_IN = f"""#!/bin/sh
# edgevit: fake
phone="${{0%/*}}/../phone"
case "$1 $2" in
  'usbmux list') echo '[{{"Identifier": "{UDID}"}}]';;
  'developer dvt') eval "set -- $4"; shift; exec {sys.executable} {Path(__file__).parent}/fake_app.py "$phone" "$@";;
  'apps push') echo "$5" >> "$phone/pushed"; mkdir -p "$phone/${{5%/*}}"; cp "$4" "$phone/$5";;
  'apps pull') cp "$phone/$4" "$5";;
esac
"""
QUICK = BenchPlan(rounds=2, warmup_s=0, min_samples=70, min_seconds=0, max_seconds=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory, module_file):
    """A real bundle for Core ML, and what a check of it must answer."""
    pytest.importorskip("coremltools")
    from edgevit import cli

    folder = tmp_path_factory.mktemp("coreml") / "out"
    words = ["export", str(module_file), "--trust-pickle", "--target", "coreml", "-o", str(folder)]
    assert cli.run(words) == 0
    bundle = Bundle.load(folder)
    session = runtime("coreml").open(bundle.engine)
    from edgevit.devices.in_app import INPUTS
    from edgevit.devices.plan import pseudo_random

    inputs = pseudo_random([INPUTS, *bundle.engine.inputs.shape[1:]], 0)
    return bundle, [session.run(one[None])[0].tolist() for one in inputs]


@pytest.fixture
def phone(tmp_path, monkeypatch, made):
    """The folder that stands for the phone."""
    program = tmp_path / "bin" / "pymobiledevice3"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "outputs.json").write_text(json.dumps(made[1]))
    return tmp_path / "phone"


@pytest.fixture
def device():
    return config.make("phone", {"transport": "ios-usb", "udid": UDID, "app": APP}, "test")


def measure(device, made, **setup):
    return bench.profile([job(made[0], "fast", there=True)], None, QUICK, device=device, setup=Setup(**setup))


def test_a_bundle_is_measured_in_the_app(phone, device, made):
    found = measure(device, made)
    record = found.to_json()
    assert record["fake"] is True  # the stand-in says so, and so does everything that came over it
    assert record["device"]["model"] == "iPhone15,2"
    assert [len(r.samples_ms) for r in found.measurement.rounds] == [70, 70]
    assert found.records[0]["placement"]["off_neural_engine"] == {"topk": 2}
    assert record["conditions"]["outputs"]["fast"]["relative_diff"] == 0
    trees = [line for line in (phone / "pushed").read_text().splitlines() if "/trees/" in line]
    assert trees[-1].endswith(".whole")  # last of all
    measure(device, made)
    again = [line for line in (phone / "pushed").read_text().splitlines() if "/trees/" in line]
    assert again == trees  # what is there is not sent again


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("no cores", "the app says cores=0, present=.*write it again"),
        ("dies", r"device phone: the app left no record \(.*is it unlocked\?"),
        ("another launch", "left the record of another launch"),
        ("old app", "the app speaks schema 0, this is 1: write it again"),
        ("refuses", "device phone: the app says: no such model"),
        ("low power", "saves power: turn low power mode off"),
        ("no time", r"fast: .*round 1 of 2: its record lacks load_ms; use the runner of this version"),
    ],
)
def test_what_goes_wrong_is_one_line(phone, device, made, fault, match):
    (phone / "fault").write_text(fault)
    with pytest.raises(MeasureError, match=match):
        measure(device, made)


def test_outputs_that_are_others(phone, device, made):
    (phone / "outputs.json").write_text(json.dumps([[-value for value in row] for row in made[1]]))
    with pytest.raises(
        MeasureError, match=r"its outputs on phone differ from a reference executor .* by 2 of their size"
    ):
        measure(device, made)
    (phone / "outputs.json").write_text("[[1.0]]")
    with pytest.raises(MeasureError, match=r"outputs of \(1, 1\) came back"):
        measure(device, made)


def test_one_session_at_a_time_on_a_phone(phone, device, made):
    with session_lock(UDID), pytest.raises(MachineBusy, match=rf"process {os.getpid()}\) is running on phone {UDID}"):
        measure(device, made)
    with session_lock("another"):
        measure(device, made)


def test_a_hot_phone_is_told(phone, device, made):
    (phone / "fault").write_text("hot")
    notes = measure(device, made).to_json()["notes"]
    assert any(note.startswith("fast: 2 rounds began or ended while the device was hot") for note in notes)


def test_what_does_not_fit_is_refused(phone, device, made, cli):
    with pytest.raises(MeasureError, match="nothing holds clocks of a phone"):
        measure(device, made, hold={"clocks": "on"})
    result = cli("profile", made[0].folder)
    assert (result.code, "runs on an iPhone or iPad: give --device" in result.err) == (1, True)


def test_a_check_asks_the_app(phone, device, tmp_path, monkeypatch, cli):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config.add("phone", {"transport": "ios-usb", "udid": UDID, "app": APP})
    found = cli("devices", "check", "phone", "--json").json
    assert (found["device"]["model"], found["app"]["thermal"], found["fake"]) == ("iPhone15,2", "nominal", True)


def test_the_app_is_written_and_parses(tmp_path, cli):
    result = cli("devices", "app", "-o", tmp_path, "--app", "org.example.mine", "--team", "ABCDE12345", "--json")
    project = Path(result.json["project"])
    sources = [project / "Package.swift", *(project / "Sources" / name for name in SOURCES)]
    assert [found for found in map(parsed, sources) if found] == []
    assert sorted(p for p in project.rglob("*.swift")) == sorted(sources)
    package = (project / "Package.swift").read_text()
    assert 'bundleIdentifier: "org.example.mine"' in package
    assert 'teamIdentifier: "ABCDE12345"' in package
    engines = (project / "Sources/Engines.swift").read_text()
    assert all(f'case "{runner}"' in engines for runner in IN_APP)
    for options, match in (({"app": "-x"}, "no bundle identifier"), ({"app": APP, "team": "x"}, "no team identifier")):
        with pytest.raises(MeasureError, match=match):
            write_app(tmp_path / "other", **options)
    with pytest.raises(MeasureError, match="is there already"):
        write_app(tmp_path, APP)
    assert [p.name for p in tmp_path.iterdir()] == ["Runner.swiftpm"]

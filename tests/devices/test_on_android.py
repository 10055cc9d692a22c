"""Sessions on an Android phone, with a fake runner over a stand-in of adb whose phone is a folder."""

import json
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevit.bundle import Bundle
from edgevit.devices import bench, config, in_app, on_android, rounds
from edgevit.devices.app_project import PROGRAM
from edgevit.devices.bench import BenchPlan
from edgevit.devices.layered import time_layers
from edgevit.devices.plan import Setup, pseudo_random
from edgevit.errors import MeasureError
from edgevit.measure import job
from tests.devices.bundles import bundle
from tests.devices.test_phones import ADB, write

ABI = on_android.abi(Path(os.path.realpath("/bin/sh")))
GETPROP = """#!/bin/sh
echo '[ro.product.cpu.abilist]: [{abi}]
[ro.product.manufacturer]: [Example]
[ro.product.model]: [Phone 1]
[ro.soc.manufacturer]: [Maker]
[ro.soc.model]: [SM1]
[ro.build.version.release]: [15]
[ro.build.fingerprint]: [example/phone/1:15/A]'
"""
DUMPSYS = """#!/bin/sh
case "$1" in
  thermalservice) echo 'Thermal Status: {state}
Cached temperatures:
\tTemperature{{mValue=90.0, mType=0, mName=OLD, mStatus=0}}
Current temperatures from HAL:
\tTemperature{{mValue=41.5, mType=3, mName=skin, mStatus=0}}
Current cooling devices from HAL:';;
  battery) echo 'Current Battery Service state:
  AC powered: false
  status: 2
  level: 85
  scale: 100';;
esac
"""
QUICK = BenchPlan(rounds=2, warmup_s=0, min_samples=70, min_seconds=0, max_seconds=1)


def android(place, monkeypatch):
    """A stand-in of adb on the PATH whose phone has the commands of Android that are read; returns `place`."""
    folder = place / "bin"
    folder.mkdir()
    write(folder / "adb", ADB.replace("push|pull) ", 'push|pull) echo "$3" >> "${0%/*}/copied"; '))
    write(folder / "getprop", GETPROP.format(abi=f"{ABI},armeabi-v7a"))
    write(folder / "dumpsys", DUMPSYS.format(state=0))
    write(folder / "settings", "#!/bin/sh\ncat ${0%/*}/low_power 2>/dev/null || echo 0\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return place


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """The folder of a stand-in of adb."""
    return android(tmp_path, monkeypatch)


@pytest.fixture
def runner(phone):
    """A folder with a fake runner, and what it answers to a check."""
    (phone / "runner").mkdir()
    write(
        phone / "runner/runner_ort",
        f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent}/fake_app.py {phone} "$@"\n',
    )
    (phone / "runner/libsome.so").write_text("a library")
    (phone / "runner/notes.txt").write_text("pushed by nobody")
    inputs = pseudo_random([2, 3, 8, 8], 0)
    (phone / "outputs.json").write_text(json.dumps(inputs.clip(0).tolist()))
    return phone / "runner"


@pytest.fixture
def fast(tmp_path):
    return Bundle.load(bundle(tmp_path / "fast"))


def device(phone, runner):
    table = {"transport": "adb", "serial": "PHONE1", "work": str(phone / "work"), "runner": str(runner)}
    return config.make("phone", table, "test")


def measure(phone, runner, *bundles, plan=QUICK, **setup):
    jobs = [job(found, found.name, there=True) for found in bundles]
    return bench.profile(jobs, None, plan, device=device(phone, runner), setup=Setup(**setup))


def test_a_bundle_is_measured_by_the_pushed_program(phone, runner, fast):
    found = measure(phone, runner, fast)
    record = found.to_json()
    assert record["fake"] is True  # the stand-in says so, and so does everything that came over it
    about = {"name": "phone", "model": "Example Phone 1", "os": "Android 15", "arch": "arm64", "cpu": "Maker SM1"}
    assert record["device"] == {**about, "cores": 6, "build": "example/phone/1:15/A"}
    state = found.measurement.conditions["before"]
    assert (state["thermal"], state["temp_c"], state["battery"], state["charging"]) == (
        "none",
        {"skin": 41.5},
        0.85,
        True,
    )
    assert record["conditions"]["outputs"]["fast"]["relative_diff"] == 0
    assert (found.records[0]["thermal_before"], found.records[0]["thermal_after"]) == ("none", "none")
    copied = (phone / "bin/copied").read_text().split()
    programs = [name for name in copied if "/programs/" in name]
    assert [Path(name).name.removesuffix(".part") for name in programs[:2]] == ["libsome.so", "runner_ort"]
    assert len(programs) == 3  # and the mark, last
    assert programs[-1].endswith(".whole.part")
    measure(phone, runner, fast)
    again = (phone / "bin/copied").read_text().split()[len(copied) :]
    assert again
    assert not [name for name in again if "/programs/" in name or "/trees/" in name]  # what is there is not sent again


GOOD = {
    "job": {}, "fake": True, "runtime": "r", "runtime_version": "1", "load_ms": 1, "first_ms": 1, "threads": 1,
    "samples_ms": [1.0], "peak_memory_bytes": 1, "warmup": {"seconds": 0, "stable": True},
}  # fmt: skip


def ask(phone, runner):
    with in_app.held(device(phone, runner), ()) as session:
        return session._ask({"kind": "round", "min_samples": 1}, 30, "here")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b'{"id": "@ID@", "samp', r"here: the runner left no record \(.*\): was it killed for memory\?"),
        (b'{"id": "@ID@", "x": "\xff"}', "left no record .* codec can't decode"),
        (b"[" * 100_000, "left no record .* nested too deep"),
        (b"[1]", "left no record .* no object but list"),
        (b'{"id": 1' + b"0" * 9999 + b"}", "left no record .*"),
    ],
    ids=["cut", "bytes", "nested", "list", "number"],
)
def test_a_record_may_be_anything(phone, runner, text, match):
    (phone / "record").write_bytes(text)
    with pytest.raises(MeasureError, match=match) as caught:
        ask(phone, runner)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"load_ms": math.nan}, "load_ms=nan"),
        ({"first_ms": "9"}, "first_ms='9'"),
        ({"peak_memory_bytes": 10**400}, "peak_memory_bytes=1000"),
        ({"threads": True}, "threads=True"),
        ({"warmup": []}, "warmup.seconds=None, warmup.stable=None"),
        ({"runtime_version": 3}, "runtime_version=3"),
        ({"samples_ms": 3}, "no samples, or samples that are not positive"),
        ({"samples_ms": [1.0, math.nan]}, "no samples, or samples that are not positive"),
        ({"samples_ms": [1.0, None]}, "no samples, or samples that are not positive"),
    ],
)
def test_values_that_are_none(changes, match):
    with pytest.raises(MeasureError, match=rf"^here: its record holds .*{match}") as caught:
        rounds.checked({**GOOD, **changes}, "here")
    assert len(str(caught.value)) < 300
    assert rounds.checked(GOOD, "here") is GOOD


def test_a_record_that_is_huge(phone, runner, monkeypatch):
    monkeypatch.setattr(rounds, "MOST_BYTES", 100_000)
    (phone / "record").write_bytes(b" " * 100_001)
    with pytest.raises(MeasureError, match="it has 100001 bytes, 100000 are the most"):
        ask(phone, runner)


def test_a_program_for_another_phone(phone, runner, fast):
    other = {"x86_64": 183, "arm64-v8a": 62}.get(ABI, 40)
    head = b"\x7fELF" + bytes(14) + other.to_bytes(2, "little")
    (runner / "runner_ort").write_bytes(head + bytes(100))
    built = on_android.ABIS[other]
    with pytest.raises(
        MeasureError, match=rf"runner_ort is built for {built}, and the phone runs {ABI}, .*ANDROID_ABI={ABI}"
    ):
        measure(phone, runner, fast)
    (phone / "bin/getprop").unlink()  # a phone that tells nothing: then the attempt does
    with pytest.raises(
        MeasureError,
        match=rf"runner_ort does not start on the phone \(.*\); it is built for {built}, and the phone runs nob",
    ):
        measure(phone, runner, fast)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p: (p / "runner/runner_ort").rename(p / "runner/runner_executorch"), "has no runner_ort: build it"),
        (lambda p: (p / "runner").rename(p / "moved"), "runner=.* cannot be read: No such file"),
        (lambda p: (p / "bin/low_power").write_text("1\n"), "saves power: turn low power mode off"),
        (lambda p: (p / "outputs.json").write_text("[[1], [1, 2]]"), "its outputs are no rows of numbers"),
        (
            lambda p: write(p / "runner/runner_ort", "#!/bin/sh\necho CANNOT LINK EXECUTABLE >&2; exit 1\n"),
            "runner_ort does not start on the phone .*lacks a library that must lie beside it",
        ),
        (lambda p: write(p / "runner/runner_ort", "#!/bin/sh\nkill -9 $$\n"), "left no record .*killed for memory"),
    ],
)
def test_what_goes_wrong_is_one_line(phone, runner, fast, change, match):
    change(phone)
    with pytest.raises(MeasureError, match=match):
        measure(phone, runner, fast)


def test_a_hot_phone_is_told(phone, runner, fast):
    write(phone / "bin/dumpsys", DUMPSYS.format(state=1))
    assert any(
        note.startswith("fast: 2 rounds began or ended while")
        for note in measure(phone, runner, fast).to_json()["notes"]
    )


def test_what_does_not_fit_is_refused(phone, runner, fast, tmp_path):
    with pytest.raises(MeasureError, match="nothing holds clocks of a phone"):
        measure(phone, runner, fast, hold={"clocks": "on"})
    with pytest.raises(MeasureError, match="times no single layers: leave --layers or --device out"):
        time_layers([job(fast, "fast", there=True)], QUICK, device=device(phone, runner))
    with pytest.raises(MeasureError, match=r"runner 'openvino' is none of phone: export for ort or executorch"):
        measure(phone, runner, Bundle.load(bundle(tmp_path / "other", "openvino")))
    with pytest.raises(MeasureError, match="has no runner: build one"):
        measure(phone, "", fast)


def test_a_check_asks_the_program(phone, runner, monkeypatch, cli):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(phone))
    config.add("phone", {"transport": "adb", "serial": "PHONE1", "work": str(phone / "work"), "runner": str(runner)})
    found = cli("devices", "check", "phone", "--json").json
    assert (found["device"]["model"], found["app"]["thermal"], found["fake"]) == ("Example Phone 1", "none", True)


def test_the_project_is_written(tmp_path, cli):
    project = Path(cli("devices", "app", "--platform", "android", "-o", tmp_path, "--json").json["project"])
    names = sorted(name for files in PROGRAM.values() for name in files)
    assert sorted(path.name for path in (project / "src").iterdir()) == names
    result = cli("devices", "app", "--platform", "android", "-o", tmp_path / "x", "--team", "ABCDE12345")
    assert (result.code, "leave them out with --platform android" in result.err) == (1, True)
    assert "is there already" in cli("devices", "app", "--platform", "android", "-o", tmp_path).err


CORE = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_{}:{}\n"


def test_clocks_are_read_as_the_kernel_has_them():
    cores = [("10", "cur_freq", 3000000), ("2", "cur_freq", 1800000), ("2", "governor", "walt"), ("x", "cur_freq", 1)]
    found = on_android.clocks("".join(CORE.format(*core) for core in cores))
    assert found == {"governor": "walt", "frequencies_mhz": {"cur": [1800.0, 3000.0]}}
    assert on_android.clocks("") == {"governor": "unknown", "frequencies_mhz": "unknown"}


PRINTED = (
    "Thermal Status: 9\n",
    "Temperature{mValue=",
    "1",
    "²",
    " level: ",
    "\n",
    " scale: 0\n",
    CORE,
    "[a]: [",
    "]\n",
)


@given(st.lists(st.sampled_from(PRINTED) | st.characters(), max_size=20).map("".join))
@settings(max_examples=60)
def test_what_android_prints_may_be_anything(text):
    for parse in (on_android.properties, on_android.heat, on_android.battery, on_android.clocks):
        assert isinstance(parse(text), dict)
    assert on_android.about(on_android.properties(text))["os"]


VALUES = st.sampled_from((None, True, 0, -1, 10**400, math.inf, "x", [], [[]], {}, {"seconds": {}}, *GOOD.values()))


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, VALUES)))
@settings(max_examples=60)
def test_a_record_of_any_values_is_taken_or_refused(changes):
    with suppress(MeasureError):
        assert rounds.checked({**GOOD, **changes}, "here")

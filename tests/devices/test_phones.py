"""Transports to phones, on stand-ins of adb, pymobiledevice3 and xcrun that keep a folder for a phone."""

import json
import os
import stat

import pytest

from edgevit import cli
from edgevit.devices import config, remote
from edgevit.devices.ios_mac import parse_devices
from edgevit.errors import MeasureError

UDID = "00008110-000A1B2C3D4E5F60"
APP = "com.example.runner"
COPY = (
    'case "$2" in *readonly*) echo "copy: read-only file system" >&2; exit 1;; esac; mkdir -p "${2%/*}"; cp "$1" "$2"'
)
ADB = f"""#!/bin/sh
# edgevit: fake
copy() {{ {COPY}; }}
[ "$1" = -s ] || exit 64
serial=$2; shift 2
[ "$serial" = PHONE1 ] || {{ echo "adb: device '$serial' not found" >&2; exit 1; }}
case "$1" in
  get-state) [ ! -e "${{0%/*}}/unauthorized" ] || {{ echo 'error: device unauthorized.' >&2; exit 1; }}; echo device;;
  shell) shift 2; exec sh -c "$*";;
  push|pull) copy "$2" "$3";;
esac
"""
PYMOBILEDEVICE3 = f"""#!/bin/sh
# edgevit: fake
copy() {{ {COPY}; }}
case "$1 $2" in
  'usbmux list') echo '[{{"Identifier": "{UDID}"}}]';;
  'developer dvt') eval "set -- $4"; printf '%s|' "$@"; [ "$2" != crash ] || {{ echo boom >&2; exit 3; }};;
  'apps push'|'apps pull') [ "$3" = {APP} ] && copy "$4" "$5";;
esac
"""
XCRUN = f"""#!/bin/sh
# edgevit: fake
copy() {{ {COPY}; }}
shift
case "$1 $2" in
  'list devices') cp "${{0%/*}}/devices.json" "$5";;
  'device process') shift 7; printf '%s|' "$@"; [ "$2" != crash ] || {{ echo boom >&2; exit 3; }};;
  'device copy')
    while [ $# -gt 0 ]; do case "$1" in --source) from=$2;; --destination) to=$2;; esac; shift; done
    copy "$from" "$to";;
esac
"""
LISTED = {
    "result": {
        "devices": [
            {
                "identifier": "1F2E3D4C-0000-0000-0000-000000000000",
                "deviceProperties": {"name": "phone", "osVersionNumber": "26.0", "developerModeStatus": "enabled"},
                "hardwareProperties": {"udid": UDID, "productType": "iPhone14,5"},
            }
        ]
    }
}


def write(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def phone(request, tmp_path, monkeypatch):
    """A device of the kind that the test names, reached over stand-ins."""
    kind = request.param
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    if kind == "adb":
        write(folder / "adb", ADB)
        return config.make("phone", {"transport": "adb", "serial": "PHONE1", "work": str(tmp_path)}, "test")
    if kind == "ios-usb":
        write(folder / "pymobiledevice3", PYMOBILEDEVICE3)
        return config.make("phone", {"transport": "ios-usb", "udid": UDID, "app": APP}, "test")
    board = request.getfixturevalue("board")
    write(board.bin / "xcrun", XCRUN)
    (board.bin / "devices.json").write_text(json.dumps(LISTED))
    table = {key: board.table[key] for key in ("host", "config", "work")}
    return config.make("phone", {"transport": "ios-mac", "udid": UDID, "app": APP, **table}, "test")


ALL = pytest.mark.parametrize("phone", ["adb", "ios-usb", "ios-mac"], indirect=True)
IPHONES = pytest.mark.parametrize("phone", ["ios-usb", "ios-mac"], indirect=True)
ANDROID = pytest.mark.parametrize("phone", ["adb"], indirect=True)


@ALL
def test_files_go_there_and_come_back(phone, tmp_path):
    here, there, back = tmp_path / "it's", f"{tmp_path}/device/new/b", tmp_path / "back"
    here.write_bytes(bytes(range(256)) * 1000)
    with phone.transport.connect():
        phone.transport.push(here, there)
        phone.transport.pull(there, back)
        assert back.read_bytes() == here.read_bytes()
        assert [p.name for p in (tmp_path / "device" / "new").iterdir()] == ["b"]
        with pytest.raises(MeasureError, match=r"copying it's to .*readonly/b failed: .*read-only"):
            phone.transport.push(here, f"{tmp_path}/readonly/b")
        with pytest.raises(MeasureError, match=r"fetching .*/nothing failed: "):
            phone.transport.pull(f"{tmp_path}/nothing", tmp_path / "other")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("other")]


@IPHONES
def test_an_app_is_launched_with_its_words(phone):
    with phone.transport.connect():
        assert phone.transport.run(["a b", "$HOME", "'", "*"]).stdout.decode() == f"{APP}|a b|$HOME|'|*|"
        with pytest.raises(MeasureError, match=rf"launching {APP} failed: boom"):
            phone.transport.run(["crash"])
        with pytest.raises(MeasureError, match="push a file"):
            phone.transport.run(["x"], b"input")


@ANDROID
def test_a_command_of_the_phone_gives_status_and_streams(phone):
    done = phone.transport.run(
        ["sh", "-c", 'printf "%s|" "$@"; cat >&2; exit 7', "-", "a b", "$HOME", "'"], b"error: x"
    )
    assert (done.status, done.stdout.decode(), done.stderr) == (7, "a b|$HOME|'|", b"error: x")


@ANDROID
def test_a_phone_that_is_not_there_or_asks_first(phone, tmp_path):
    (tmp_path / "bin" / "unauthorized").touch()
    with pytest.raises(MeasureError, match=r"adb PHONE1: connecting failed: .*; accept the question on its screen"):
        phone.transport.connect().__enter__()
    other = config.make("x", {"transport": "adb", "serial": "PHONE2"}, "test").transport
    with pytest.raises(MeasureError, match=r"adb PHONE2: connecting failed: .*not found; is it plugged in"):
        other.connect().__enter__()
    with pytest.raises(MeasureError, match="adb PHONE2: running ls failed"):
        other.run(["ls"])


@IPHONES
def test_another_iphone_is_not_there(phone):
    other = type(phone.transport)(**{**config_of(phone), "udid": UDID[::-1]})
    with pytest.raises(MeasureError, match=r"not among the devices; is it plugged in|the Mac knows no device"):
        other.connect().__enter__()


def config_of(phone):
    return {key: value for key, value in vars(phone.transport).items() if not key.startswith("_")}


@pytest.mark.parametrize("phone", ["ios-mac"], indirect=True)
def test_a_mac_without_xcode_and_a_phone_without_developer_mode(phone, board):
    off = json.loads(json.dumps(LISTED).replace("enabled", "disabled"))
    (board.bin / "devices.json").write_text(json.dumps(off))
    with pytest.raises(MeasureError, match="developer mode of phone is disabled: turn it on"):
        phone.transport.connect().__enter__()
    (board.bin / "xcrun").unlink()
    with pytest.raises(MeasureError, match=r"listing devices failed: .*; is Xcode there"):
        phone.transport.connect().__enter__()


@pytest.mark.parametrize("text", [b"", b"[]", b'{"result": 3}', b'{"result": {"devices": [3]}}', b"\xff"])
def test_a_list_that_is_none(text):
    with pytest.raises(MeasureError, match="gave no list of devices"):
        parse_devices(text)


@ANDROID
def test_a_check_names_the_stand_in(phone, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config.add("phone", {"transport": phone.kind, **{k: v for k, v in config_of(phone).items() if v}})
    assert cli.run(["devices", "check", "phone", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == {"name": "phone", "transport": phone.kind}
    assert found["fake"] is True
    with pytest.raises(MeasureError, match="no Python runs behind"):
        remote.there(phone).__enter__()


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"transport": "adb", "serial": "-s"}, "no serial number"),
        ({"transport": "adb", "serial": "A", "work": "x"}, "absolute path on the phone"),
        ({"transport": "adb", "serial": "A", "runner": "x"}, "absolute path here"),
        ({"transport": "ios-usb", "udid": "x", "app": APP}, "no identifier of a device"),
        ({"transport": "ios-usb", "udid": UDID, "app": "-x"}, "no bundle identifier"),
        ({"transport": "ios-mac", "host": "-x", "udid": UDID, "app": APP}, "no host"),
    ],
)
def test_values_that_make_no_sense(table, match):
    with pytest.raises(MeasureError, match=match):
        config.make("phone", table, "test")

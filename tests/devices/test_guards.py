"""Guards on stand-ins of the tools: set by name, verified, and restored however the session ends."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from edgevit.devices import guard_governor, guard_jetson_clocks, guard_nvpmodel, guards
from edgevit.devices.guard_system import System
from edgevit.errors import MeasureError
from tests.conftest import heed_interrupts

NVPMODEL = """#!/bin/sh
# edgevit: fake
cd "$(dirname "$0")/.."
case "$1" in
  -q) number=$(cat mode)
      name=$(sed -n "s/.*ID=$number NAME=\\([^ ]*\\).*/\\1/p" etc/nvpmodel.conf)
      printf 'NV Power Mode: %s\\n%s\\n' "$name" "$number";;
  -m) [ -e refuse ] && exit 0; [ "$2" = 9 ] && echo 'Do you want to reboot NOW? enter YES/yes to confirm:' && exit 0
      echo "$2" >mode;;
esac
"""
CLOCKS = """#!/bin/sh
# edgevit: fake
cd "$(dirname "$0")/.."
case "$1" in
  --show) cat clocks;;
  --store) cp clocks "$2";;
  --restore) cp "$2" clocks;;
  '') cp locked clocks;;
esac
"""
FREE = (
    "SOC family:tegra234\ncpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1510400 CurrentFreq=1036800\n"
    "GPU MinFreq=306000000 MaxFreq=624750000 CurrentFreq=306000000\n"
    "EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=0\n"
)
LOCKED = (
    "SOC family:tegra234\ncpu0:  Online=1 Governor=schedutil MinFreq=1510400 MaxFreq=1510400 CurrentFreq=1510400\n"
    "GPU MinFreq=624750000 MaxFreq=624750000 CurrentFreq=624750000\n"
    "EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=1\n"
)
BOTH = {"nvpmodel": "MAXN", "jetson_clocks": "on"}


def jetson(folder):
    """Stand-ins of a Jetson's tools in folder/bin, with their state beside it."""
    for name, text in (("nvpmodel", NVPMODEL), ("jetson_clocks", CLOCKS)):
        path = folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (folder / "etc").mkdir(exist_ok=True)
    names = ("15W", "MAXN")
    conf = "".join(f"< POWER_MODEL ID={number} NAME={name} >\n" for number, name in enumerate(names))
    (folder / "etc" / "nvpmodel.conf").write_text(conf + "< POWER_MODEL ID=9 NAME=RESTART >\n")
    for name, text in (("mode", "0\n"), ("clocks", FREE), ("locked", LOCKED)):
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def board(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # the stand-ins need no sudo
    return jetson(tmp_path)


@pytest.fixture
def system(board):
    (board / "work").mkdir()
    return System(board / "work", board)


def state(board):
    return (board / "mode").read_text().strip(), (board / "clocks").read_text()


def test_what_is_held_is_verified_and_given_back(board, system):
    found = guards.hold(BOTH, system)
    assert state(board) == ("1", LOCKED)
    assert found["nvpmodel"]["before"] == {"name": "15W", "id": 0}
    assert found["nvpmodel"]["held"] == {"name": "MAXN", "id": 1}
    assert found["jetson_clocks"]["held"]["GPU"] == [624750000] * 3
    assert (system.folder / guards.JOURNAL).exists()
    assert guards.restore(system) == {"jetson_clocks": "", "nvpmodel": ""}
    assert state(board) == ("0", FREE)
    assert list(system.folder.iterdir()) == []
    assert guards.restore(system) == {}


def test_a_mode_that_did_not_take_is_seen(board, system):
    (board / "refuse").touch()
    with pytest.raises(MeasureError, match="was set to MAXN, yet the power mode is 15W"):
        guards.hold(BOTH, system)


def test_clocks_that_did_not_take_are_seen_and_what_was_set_is_in_the_journal(board, system):
    (board / "locked").write_text(FREE)
    with pytest.raises(MeasureError, match="yet not locked: cpu0, GPU, EMC"):
        guards.hold(BOTH, system)
    assert guards.restore(system) == {"jetson_clocks": "", "nvpmodel": ""}
    assert state(board) == ("0", FREE)


def test_a_mode_is_refused_by_name_and_with_a_restart(board, system):
    with pytest.raises(MeasureError, match="no power mode '25W'; it has 15W, MAXN, RESTART"):
        guards.hold({"nvpmodel": "25W"}, system)
    with pytest.raises(MeasureError, match="wants to restart the board"):
        guards.hold({"nvpmodel": "RESTART"}, system)
    assert guards.restore(system) == {"nvpmodel": ""}


def test_what_cannot_be_restored_stays_for_the_next_session(board, system):
    guards.hold(BOTH, system)
    (board / "refuse").touch()
    assert guards.restore(system) == {"jetson_clocks": "", "nvpmodel": "the power mode is MAXN, not 15W"}
    (board / "refuse").unlink()
    assert guards.restore(system) == {"jetson_clocks": "", "nvpmodel": ""}
    assert state(board) == ("0", FREE)


def test_a_missing_program_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeasureError, match="there is no nvpmodel on this machine"):
        guards.hold(BOTH, System(tmp_path))


def test_governors_of_every_core(tmp_path):
    files = [tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor" for core in range(3)]
    for path, governor in zip(files, ("schedutil", "performance", "powersave"), strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(governor + "\n")
    (tmp_path / "work").mkdir()
    system = System(tmp_path / "work", tmp_path)
    guards.hold({"governor": "performance"}, system)
    assert {path.read_text().strip() for path in files} == {"performance"}
    assert guards.restore(system) == {"governor": ""}
    assert [path.read_text().strip() for path in files] == ["schedutil", "performance", "powersave"]
    assert guard_governor.changed({"a/b/c/d/cpu1": "x"}, {}) == "other governors: cpu1"


def test_no_governor_shown(tmp_path):
    with pytest.raises(MeasureError, match="shows no CPU governor"):
        guards.hold({"governor": "performance"}, System(tmp_path, tmp_path))


SESSION = """
import os, sys, time
from pathlib import Path
from edgevit.devices import guards
from edgevit.devices.guard_system import System
folder = Path(sys.argv[1])
keeper = guards.Keeper(folder, os.open(os.devnull, os.O_RDONLY))
guards.hold({"jetson_clocks": "on"}, System(folder))
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_session_that_dies_any_way_is_restored_by_its_keeper(board, system, number):
    if os.getuid() != 0:
        pytest.skip("the stand-ins would be called by sudo")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", SESSION, str(system.folder)]
    session = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, start_new_session=True, preexec_fn=heed_interrupts
    )
    try:
        assert session.stdout.readline() == b"held\n"
        assert state(board) == ("0", LOCKED)
        os.killpg(session.pid, number)
        session.wait(60)
        deadline = time.monotonic() + 60
        while (system.folder / guards.JOURNAL).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert state(board) == ("0", FREE)
    finally:
        session.kill()
        session.communicate()


@pytest.mark.parametrize("text", ["", "NVPM ERROR: optMask is 1, no request for power mode", "\0\xff" * 50])
def test_outputs_that_are_none_are_refused(text):
    with pytest.raises(MeasureError, match="names no power mode"):
        guard_nvpmodel.parse_mode(text)
    with pytest.raises(MeasureError, match="names no clock"):
        guard_jetson_clocks.parse_show(text)


def test_thor_names_its_clocks_otherwise():
    text = (
        "cpu0:  Governor=schedutil MinFreq=2 MaxFreq=2 CurrentFreq=2 IdleStates: WFI=0 cc7=0\n"
        "gpu-gpc-0 MinFreq=5 MaxFreq=5 CurrentFreq=5\ngpu-nvd-0 MinFreq=6 MaxFreq=7 CurrentFreq=7\n"
        "EMC MinFreq=1 MaxFreq=9 CurrentFreq=9 FreqOverride=1\nPVA0_AXI:  Online=0 MinFreq=0 MaxFreq=9 CurrentFreq=9\n"
    )
    clocks = guard_jetson_clocks.parse_show(text)
    assert set(clocks) == {"cpu0", "gpu-gpc-0", "gpu-nvd-0", "EMC"}
    assert guard_jetson_clocks.differs("on", clocks) == "not locked: gpu-nvd-0"


def test_the_journal_is_whole_before_anything_is_set(board, system, monkeypatch):
    seen = []
    monkeypatch.setattr(
        guard_nvpmodel, "hold", lambda *_: seen.append(json.loads((system.folder / guards.JOURNAL).read_text()))
    )
    with pytest.raises(MeasureError):
        guards.hold(BOTH, system)
    assert seen == [{"nvpmodel": {"name": "15W", "id": 0}}]

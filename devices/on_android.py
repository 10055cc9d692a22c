"""The runner of an Android phone: a program and its libraries, pushed once by content and started over adb.

The program tells of itself; what the phone is, its heat, battery and clocks are read over adb, past it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.devices.conditions import UNKNOWN
from edgevit.devices.tree import File, push_tree, tree_name
from edgevit.errors import MeasureError

if TYPE_CHECKING:
    from edgevit.devices.plan import Job
    from edgevit.devices.transport import Done, PhoneTransport

ABIS = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a", 243: "riscv64"}
"""The machine in an ELF file's header → Android's name of it."""
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""Android's thermal states, by number."""
CLOCKS = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_"
WHERE = "docs/devices/android.md"


class Program:
    """`edgevit.devices.in_app.Launcher`. work: there. folder: here, where the program was installed to."""

    runners: tuple[str, ...] = ("ort", "executorch")
    name = "the runner"
    lost = "was it killed for memory?"

    def __init__(self, transport: PhoneTransport, work: str, folder: str) -> None:
        if not folder:
            raise MeasureError(
                "this device has no runner: build one (`edgevit devices app --platform android -o .`) and give its "
                f"folder as runner=DIR in devices.toml; {WHERE} has the steps"
            )
        self.transport = transport
        self.work = work
        self.folder = Path(folder).expanduser()
        self.place = ""
        self.there: list[str] = []  # runtimes that the folder has a program of
        self.properties: dict[str, str] = {}

    def ready(self, jobs: Sequence[Job]) -> None:
        """See that the programs are for this phone, and push them where they are not there."""
        files = self._files([job.runner for job in jobs])
        self.properties = properties(self._said(["getprop"]))
        known = self._abis()
        for name in (name for name in files if name.startswith("runner_")):
            if known and abi(files[name].path) not in (UNKNOWN, *known):
                raise MeasureError(f"{files[name].path} {self._other_abi(files[name].path)}")
        self.place = f"{self.work}/programs/{tree_name({name: file.sha256 for name, file in files.items()})}"
        if self.transport.run(["test", "-e", f"{self.place}.whole"]).status:
            push_tree(self.transport, self.folder, list(files), self.place)
        done = self.transport.run(["chmod", "755", *(f"{self.place}/{name}" for name in files)])
        if done.status:
            raise MeasureError(f"making the runner in {self.place} executable failed: {done.last_line}")

    def _files(self, needed: Sequence[str]) -> dict[str, File]:
        """The programs and libraries of the folder. Raises MeasureError: one that is needed is not there."""
        try:
            names = sorted(path.name for path in self.folder.iterdir() if path.is_file())
            names = [name for name in names if name.startswith("runner_") or (name.startswith("lib") and ".so" in name)]
            files = {name: File.of(self.folder / name) for name in names}
        except OSError as error:
            raise MeasureError(f"runner={self.folder} cannot be read: {error.strerror}; {WHERE}") from error
        self.there = [name for name in self.runners if f"runner_{name}" in files]
        missing = [f"runner_{name}" for name in needed or self.there or self.runners if name not in self.there]
        if missing:
            raise MeasureError(
                f"runner={self.folder} has no {missing[0]}: build it, and `cmake --install build --prefix` to there; "
                f"{WHERE}"
            )
        return files

    def launch(self, job: Mapping[str, Any], limit_s: float) -> Done:
        """The program of the job's runtime; any, where the job is to tell of the phone."""
        program = f"runner_{job.get('runner') or self.there[0]}"
        done = self.transport.run([f"{self.place}/{program}", "--job", f"{self.work}/job.json"], timeout_s=limit_s)
        if done.status in (126, 127) or b"CANNOT LINK EXECUTABLE" in done.stderr:
            raise MeasureError(
                f"{program} does not start on the phone ({done.last_line}); it "
                f"{self._other_abi(self.folder / program)}, or lacks a library that must lie beside it"
            )
        return done

    def _abis(self) -> list[str]:
        listed = self.properties.get("ro.product.cpu.abilist") or self.properties.get("ro.product.cpu.abi", "")
        return [name for name in listed.split(",") if name]

    def _other_abi(self, program: Path) -> str:
        known = self._abis()
        then = f": build it with -DANDROID_ABI={known[0]}" if known else ""
        return f"is built for {abi(program)}, and the phone runs {', '.join(known) or 'nobody knows what'}{then}"

    def facts(self) -> dict[str, Any]:
        """Model, chip, system; heat and battery; whether it saves power."""
        saves = self._said(["settings", "get", "global", "low_power"]).strip()
        return {**about(self.properties), "low_power": saves == "1", **self._power()}

    def state(self) -> dict[str, Any]:
        """Heat, battery, clocks and governors."""
        files = self._said(["sh", "-c", f"grep . {CLOCKS}governor {CLOCKS}min_freq {CLOCKS}max_freq {CLOCKS}cur_freq"])
        return {**self._power(), **clocks(files)}

    def _power(self) -> dict[str, Any]:
        return {**heat(self._said(["dumpsys", "thermalservice"])), **battery(self._said(["dumpsys", "battery"]))}

    def thermal(self) -> str | None:
        """By its number; None: this Android (9 or earlier) has no such service."""
        state = heat(self._said(["dumpsys", "thermalservice"]))["thermal"]
        return None if state == UNKNOWN else str(state)

    def _said(self, argv: list[str]) -> str:
        """What a command of the phone prints; "" of one that it does not have."""
        return self.transport.run(argv).stdout.decode("utf-8", "replace")


def abi(program: Path) -> str:
    """What a program was built for, by its ELF header; "unknown" of what is none."""
    with program.open("rb") as stream:
        head = stream.read(20)
    return (
        ABIS.get(struct.unpack("<H", head[18:20])[0], UNKNOWN)
        if head[:4] == b"\x7fELF" and len(head) == 20
        else UNKNOWN
    )


def properties(text: str) -> dict[str, str]:
    """`getprop`: lines of `[name]: [value]`."""
    return dict(re.findall(r"^\[([^\]\n]+)\]: \[(.*)\]\r?$", text, re.MULTILINE))


def about(found: Mapping[str, str]) -> dict[str, Any]:
    """What a phone is, of its properties."""

    def joined(*names: str) -> str:
        return " ".join(filter(None, (found.get(name) for name in names))) or UNKNOWN

    release = found.get("ro.build.version.release")
    return {
        "model": joined("ro.product.manufacturer", "ro.product.model"),
        "cpu": joined("ro.soc.manufacturer", "ro.soc.model")
        if found.get("ro.soc.model")
        else joined("ro.board.platform"),
        "os": f"Android {release}" if release else UNKNOWN,
        "build": joined("ro.build.fingerprint"),
    }


def heat(text: str) -> dict[str, Any]:
    """`dumpsys thermalservice`: the state by name, and the sensors' degrees as they are now."""
    state = re.search(r"^\s*Thermal Status: (\d)\b", text, re.MULTILINE)
    named = THERMAL[int(state[1])] if state and int(state[1]) < len(THERMAL) else UNKNOWN
    now = text.partition("Current temperatures from HAL:")[2].partition("Current cooling devices")[0]
    read = re.findall(r"Temperature\{mValue=(-?\d{1,4}(?:\.\d{1,9})?), mType=-?\d+, mName=([^,}\n]+)", now)
    return {"thermal": named, "temp_c": {name: float(value) for value, name in read}}


def battery(text: str) -> dict[str, Any]:
    """`dumpsys battery`: charge from 0 to 1, and whether it charges or is full; None where it does not say."""
    found = dict(re.findall(r"^ +(level|scale|status): (\d{1,6})\s*$", text, re.MULTILINE))
    level, scale = found.get("level"), int(found.get("scale", 0))
    charging = found["status"] in ("2", "5") if "status" in found else None  # BatteryManager: charging, full
    return {"battery": int(level) / scale if level and scale else None, "charging": charging}


def clocks(text: str) -> dict[str, Any]:
    """Governor and MHz of each core, as `edgevit.devices.conditions` has them, of lines `FILE:VALUE`."""
    read = re.findall(
        r"/cpu(\d{1,3})/cpufreq/scaling_(governor|min_freq|max_freq|cur_freq):(\w{1,40})\s*$", text, re.MULTILINE
    )
    governors = sorted({value for _, key, value in read if key == "governor"})
    mhz: dict[str, list[float]] = {}
    for _, key, value in sorted(read, key=lambda line: int(line[0])):
        if key != "governor" and value.isdecimal() and len(value) < 10:
            mhz.setdefault(key[:3], []).append(int(value) / 1e3)
    return {"governor": ", ".join(governors) or UNKNOWN, "frequencies_mhz": mhz or UNKNOWN}

"""What this machine is, and the state it is in: the fingerprint without which a latency means nothing.

Everything is read from files under `root` (`/` on a real machine; a made-up tree in tests), never set. A fact
that cannot be read is "unknown", not a guess. Standard library alone, Python 3.9 or later: sessions on other devices
are sent this file.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

ROOT = Path("/")
UNKNOWN = "unknown"

ISA_FLAGS = (
    # x86-64
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "avx_vnni_int8"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    # aarch64
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
"""Instruction sets that decide which kernels a runtime picks."""

ENVIRONMENT = (
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "LD_PRELOAD"),
    *("MALLOC_ARENA_MAX", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"),
)
"""Environment variables that change what is measured."""

# aarch64 kernels name the core by number only; (implementer 0x41, part).
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}


def read_text(path: Path) -> str | None:
    """The stripped text of a small system file, or None."""
    try:
        return path.read_text("utf-8", "replace").strip().strip("\0")
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """The integer in a small system file, or None."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def _cpuinfo(root: Path) -> dict[str, list[str]]:
    """`/proc/cpuinfo` as key → values over all cores."""
    found: dict[str, list[str]] = {}
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), []).append(value.strip())
    return found


def _per_core(root: Path, name: str) -> list[Path]:
    """The file or folder `name` of every core that has it, in core order."""
    found = (root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/{name}")
    return sorted(found, key=lambda path: int(path.relative_to(root).parts[4][3:]))


def _core_name(maker: str, part: str) -> str:
    """An Arm core, as the kernel numbers it, by name."""
    return _ARM_PARTS.get(part, f"Arm part {part}") if maker == "0x41" else f"implementer {maker} part {part}"


def cpu_model(root: Path = ROOT) -> str:
    """The CPU's name; on Arm the core types, for example "4 x Cortex-A76"."""
    info = _cpuinfo(root)
    if "model name" in info:
        return info["model name"][0]
    parts = list(map(_core_name, info.get("CPU implementer", []), info.get("CPU part", [])))
    if parts:
        return " + ".join(f"{parts.count(name)} x {name}" for name in dict.fromkeys(parts))
    return (platform.processor() or UNKNOWN) if root == ROOT else UNKNOWN


def isa(root: Path = ROOT) -> list[str]:
    """Those of `ISA_FLAGS` that the kernel reports."""
    info = _cpuinfo(root)
    flags = set(" ".join(info.get("flags", [])[:1] + info.get("Features", [])[:1]).split())
    return [name for name in ISA_FLAGS if name in flags]


def parse_cpu_list(text: str) -> list[int]:
    """A kernel CPU list.

    >>> parse_cpu_list("0-2,5")
    [0, 1, 2, 5]
    """
    cores: list[int] = []
    for piece in filter(None, text.strip().split(",")):
        first, _, last = piece.partition("-")
        cores.extend(range(int(first), int(last or first) + 1))
    return cores


def affinity(root: Path = ROOT) -> list[int]:
    """The cores this process may run on; empty when that cannot be read."""
    for line in (read_text(root / "proc/self/status") or "").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return parse_cpu_list(line.partition(":")[2])
    return list(range(os.cpu_count() or 1)) if root == ROOT else []


def governor(root: Path = ROOT) -> str:
    """The frequency governor; several, joined, when cores differ; "unknown" where the kernel shows none."""
    files = _per_core(root, "cpufreq/scaling_governor")
    return ", ".join(sorted({text for file in files if (text := read_text(file))})) or UNKNOWN


def turbo(root: Path = ROOT) -> str:
    """May the clock rise above its nominal value: "on", "off" or "unknown"."""
    cpu = root / "sys/devices/system/cpu"
    for path, on in (("intel_pstate/no_turbo", "0"), ("cpufreq/boost", "1")):
        text = read_text(cpu / path)
        if text is not None:
            return "on" if text == on else "off"
    return UNKNOWN


def frequencies_mhz(root: Path = ROOT) -> dict[str, list[float]]:
    """Lowest, highest and current clock of each core, where shown; locked means all three are equal."""
    folders = _per_core(root, "cpufreq")
    found: dict[str, list[float]] = {}
    for key in ("min", "max", "cur"):
        texts = [read_text(folder / f"scaling_{key}_freq") for folder in folders]
        values = [int(text) / 1e3 for text in texts if text and text.isdigit()]
        if values:
            found[key] = values
    return found


def temperature_c(root: Path = ROOT) -> float | None:
    """The hottest thermal zone, or None."""
    texts = (read_text(path) for path in (root / "sys/class/thermal").glob("thermal_zone*/temp"))
    values = [int(text) / 1e3 for text in texts if text and text.lstrip("-").isdigit()]
    return max(values, default=None)


def _quota(folder: Path) -> float | str | None:
    """Cores that one control group's files (version 2 or 1) allow; None when it has no such file."""
    text = read_text(folder / "cpu.max")
    if text is not None:
        quota, _, period = text.partition(" ")
    else:
        quota, period = read_text(folder / "cpu.cfs_quota_us") or "", read_text(folder / "cpu.cfs_period_us") or ""
        if not quota:
            return None
    if quota in ("max", "-1"):
        return "unlimited"
    try:
        return int(quota) / int(period or 100_000)
    except (ValueError, ZeroDivisionError):
        return None


def cpu_quota(root: Path = ROOT) -> float | str:
    """Cores' worth of CPU time the control groups grant: a number, "unlimited" or "unknown".

    The tightest limit on the way from this process's group to the root holds.
    """
    found: list[float | str] = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = ["sys/fs/cgroup/cpu", f"sys/fs/cgroup/{controllers}"] if controllers else ["sys/fs/cgroup"]
        for mount in dict.fromkeys(mounts):
            here = Path(path.lstrip("/"))
            # A container may show the host's path while only the root is mounted: missing groups are skipped.
            found += [quota for step in (here, *here.parents) if (quota := _quota(root / mount / step)) is not None]
    limits = [quota for quota in found if not isinstance(quota, str)]
    return min(limits) if limits else ("unlimited" if found else UNKNOWN)


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process can really keep busy: its affinity, cut by the control group's quota."""
    cores = len(affinity(root)) or 1
    quota = cpu_quota(root)
    return cores if isinstance(quota, str) else max(1, min(cores, int(quota)))


def load_average(root: Path = ROOT) -> float | None:
    """Runnable processes over the last minute, our own included; None when unknown."""
    text = read_text(root / "proc/loadavg")
    if text:
        return float(text.split()[0])
    try:
        return os.getloadavg()[0] if root == ROOT else None
    except OSError:
        return None


def _memory_bytes(root: Path) -> int | None:
    """Physical memory, or None."""
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _os_name(root: Path) -> str:
    """The distribution's own name, else the kernel's."""
    for line in (read_text(root / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system() if root == ROOT else UNKNOWN


def device(root: Path = ROOT) -> dict[str, Any]:
    """What does not change between two sessions: the machine and its software."""
    cpu = root / "sys/devices/system/cpu"
    capacities = [read_text(path) for path in _per_core(root, "cpu_capacity")]
    board = read_text(root / "proc/device-tree/model") or read_text(root / "sys/class/dmi/id/product_name")
    info: dict[str, Any] = {
        "model": board or UNKNOWN,
        "cpu": cpu_model(root),
        "arch": platform.machine(),
        "cores": len(parse_cpu_list(read_text(cpu / "online") or "")) or (os.cpu_count() or 1),
        "smt": {"1": "on", "0": "off"}.get(read_text(cpu / "smt/active") or "", UNKNOWN),
        "isa": isa(root),
        "virtual": "hypervisor" in " ".join(_cpuinfo(root).get("flags", [])[:1]).split(),
        "memory_bytes": _memory_bytes(root),
        "os": _os_name(root),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    if len(set(capacities)) > 1:  # big and little cores
        info["core_capacity"] = [int(text) for text in capacities if text and text.isdigit()]
    return info


def state(root: Path = ROOT) -> dict[str, Any]:
    """What can change between two sessions: clocks, limits, and who else is running."""
    return {
        "affinity": affinity(root),
        "usable_cores": usable_cores(root),
        "governor": governor(root),
        "turbo": turbo(root),
        "frequencies_mhz": frequencies_mhz(root) or UNKNOWN,
        "cpu_quota_cores": cpu_quota(root),
        "temperature_c": temperature_c(root),
        "loadavg": load_average(root),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }

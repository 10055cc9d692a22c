"""Facts read from made-up system trees."""

from pathlib import Path

import pytest

from edgevit.devices import conditions

X86 = {
    "proc/cpuinfo": "".join(
        f"processor\t: {i}\nmodel name\t: Some CPU @ 3.00GHz\nflags\t\t: fpu avx2 avx512_vnni amx_int8 hypervisor\n\n"
        for i in range(4)
    ),
    "proc/self/status": "Name:\tx\nCpus_allowed_list:\t0-1,3\nVmRSS:\t 10 kB\n",
    "proc/self/cgroup": "0::/box/inner\n",
    "proc/loadavg": "1.50 1.00 0.50 2/345 6789\n",
    "proc/meminfo": "MemTotal:       16000 kB\nMemFree: 1 kB\n",
    "etc/os-release": 'NAME="X"\nPRETTY_NAME="Some Linux 12"\n',
    "sys/devices/system/cpu/online": "0-3\n",
    "sys/devices/system/cpu/smt/active": "1\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "3000000\n",
    "sys/devices/system/cpu/intel_pstate/no_turbo": "1\n",
    "sys/fs/cgroup/box/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/box/inner/cpu.max": "max 100000\n",
    "sys/class/thermal/thermal_zone0/temp": "41000\n",
    "sys/class/thermal/thermal_zone1/temp": "52500\n",
}
ARM = {
    "proc/cpuinfo": "".join(
        f"processor\t: {i}\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
        for i, part in enumerate(["0xd05"] * 4 + ["0xd41"] * 2 + ["0xfff"])
    ),
    "proc/device-tree/model": "Some Board Rev 1\0",
    "sys/devices/system/cpu/cpufreq/boost": "1\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu10/cpu_capacity": "1024\n",
    "sys/devices/system/cpu/cpu2/cpu_capacity": "400\n",
}


@pytest.fixture
def tree(tmp_path):
    def grow(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return grow


def test_x86(tree):
    root = tree(X86)
    device = conditions.device(root)
    assert device["cpu"] == "Some CPU @ 3.00GHz"
    assert device["isa"] == ["avx2", "avx512_vnni", "amx_int8"]
    assert (device["cores"], device["smt"], device["virtual"]) == (4, "on", True)
    assert device["memory_bytes"] == 16000 * 1024
    assert device["os"] == "Some Linux 12"
    state = conditions.state(root)
    assert state["affinity"] == [0, 1, 3]
    assert (state["governor"], state["turbo"]) == ("performance", "off")
    assert state["cpu_quota_cores"] == 1.5
    assert state["usable_cores"] == 1
    assert state["loadavg"] == 1.5
    assert state["temperature_c"] == 52.5
    assert state["frequencies_mhz"] == {"max": [3000.0]}


def test_arm(tree):
    device = conditions.device(tree(ARM))
    assert device["model"] == "Some Board Rev 1"
    assert device["cpu"] == "4 x Cortex-A55 + 2 x Cortex-A78 + 1 x Arm part 0xfff"
    assert device["isa"] == ["asimd", "asimddp", "i8mm", "bf16"]
    assert device["core_capacity"] == [400, 1024]
    assert conditions.turbo(tree(ARM)) == "on"
    assert conditions.governor(tree(ARM)) == "schedutil"


def test_nothing_readable_is_unknown(tmp_path):
    state = conditions.state(tmp_path)
    for key in ("governor", "turbo", "frequencies_mhz", "cpu_quota_cores"):
        assert state[key] == "unknown"
    assert state["loadavg"] is None
    assert state["temperature_c"] is None
    assert state["affinity"] == []
    assert state["usable_cores"] == 1
    assert conditions.device(tmp_path)["cpu"] == "unknown"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000"}, "unlimited"),
        ({"proc/self/cgroup": "0::/not/mounted\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        ({"proc/self/cgroup": "5:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, "unlimited"),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "broken"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_cpu_quota(tree, files, expected):
    assert conditions.cpu_quota(tree(files)) == expected


def test_this_machine_is_readable():
    state = conditions.state()
    assert 1 <= state["usable_cores"] <= len(state["affinity"])
    assert conditions.device()["cpu"]


def test_environment_that_changes_a_number_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert conditions.state(tmp_path)["environment"]["OMP_NUM_THREADS"] == "3"

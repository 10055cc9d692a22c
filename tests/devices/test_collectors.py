"""What collectors make of their tools' outputs, typed here in the documented grammar, and of made-up sysfs trees."""

import os
import plistlib
from importlib import import_module
from pathlib import Path

import pytest

from edgevit.devices import (
    collect_ina,
    collect_powermetrics,
    collect_rapl,
    collect_tegrastats,
    collect_thermal,
    collect_vcgencmd,
)
from edgevit.devices.collect import COLLECTORS
from edgevit.devices.energy import integral, per_inference, unwrapped
from edgevit.devices.sensors import energy_j, mean_w, window

FIXTURES = Path(os.environ.get("EDGEVIT_FIXTURES", "/nowhere"))

TX2 = (
    b"RAM 9/7852MB (lfb 3x4MB) CPU [9%@345,off,3%@499] EMC_FREQ 0% GR3D_FREQ 0% PLL@42.5C PMIC@100C VDD_IN 3140/3208\n"
)
ORIN_USER = (
    b"01-02-2026 10:00:00 RAM 100/7620MB (lfb 4x4MB) SWAP 1/9MB (cached 0MB) CPU [0%@729,7%@1036] GR3D_FREQ 32% "
    b"cpu@54.5C tj@56C VDD_IN 4673mW/4700mW VDD_SOC 1339mW/1339mW\n"
)
ORIN_72 = (
    b"01-02-2026 10:00:00 RAM 100/7486MB (lfb 8x4MB) CPU [8%@729,off] EMC_FREQ 4%@665 GR3D_FREQ 2%@[305,306] "
    b"NVDEC0 off VIC 59%@423 APE 200 cpu@47.5C/48C gpu@-256C/-256C "
    b"VDD_IN 3703mW/4209mW/4832mW VDD_CPU_GPU_CV 602mW/880mW/1236mW\n"
)
AGX = (
    b"01-02-2026 10:00:00 RAM 100/62801MB (lfb 9x4MB) CPU [0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 "
    b"APE 174 CV0@-256C CPU@44.5C "
    b"VDD_GPU_SOC 2000mW/2000mW VDD_CPU_CV 500mW/500mW VIN_SYS_5V0 4000mW/4000mW NC 0mW/0mW\n"
)
THOR = (
    b"01-02-2026 10:00:00 RAM 100/125772MB (lfb 3x4MB) CPU [12%@972,off,33%@1890] GR3D_FREQ @[314,314,315] "
    b"NVENC0_FREQ @1556 cpu@39.5C VDD_GPU 3561mW/3561mW VDD_CPU_SOC_MSS 7910mW/7910mW "
    b"VIN_SYS_5V0 7620mW/7620mW VIN 26686mW/26686mW\n"
)


@pytest.mark.parametrize(
    ("line", "total", "temperatures", "clocks"),
    [
        (TX2, 3.14, {"pll": 42.5}, {"cpu": 499}),
        (ORIN_USER, 4.673, {"cpu": 54.5, "tj": 56.0}, {"cpu": 1036}),
        (ORIN_72, 3.703, {"cpu": 47.5}, {"cpu": 729, "emc": 665, "gr3d": 306}),
        (AGX, 6.5, {"cpu": 44.5}, {"cpu": 729, "emc": 2133, "gr3d": 0}),
        (THOR, 26.686, {"cpu": 39.5}, {"cpu": 1890, "gr3d": 315}),
    ],
    ids=["tx2", "orin-user", "orin-jp7.2", "agx", "thor"],
)
def test_tegrastats_of_all_generations(line, total, temperatures, clocks):
    found = collect_tegrastats.parse(line)
    assert found["total_w"] == pytest.approx(total)
    assert found["temp_c"] == temperatures
    assert found["clock_mhz"] == clocks
    assert "NC" not in found["power_w"]


def test_tegrastats_rails_are_named_and_in_watts():
    assert collect_tegrastats.parse(ORIN_72)["power_w"] == {"VDD_IN": 3.703, "VDD_CPU_GPU_CV": 0.602}
    assert collect_tegrastats.parse(ORIN_72)["ram_bytes"] == 100 * 2**20


@pytest.mark.parametrize("line", [TX2, ORIN_USER, ORIN_72, AGX, THOR])
def test_tegrastats_truncated_anywhere_reads_no_wrong_value(line):
    whole = collect_tegrastats.parse(line)
    for end in range(len(line)):
        found = collect_tegrastats.parse(line[:end])
        if found:
            assert found["temp_c"].items() <= whole["temp_c"].items(), line[:end]


@pytest.mark.parametrize("text", [b"", b"\n", b"\xff\xfe\0", b"RAM 1/2MB", b"tegrastats: not found", b"CPU [" * 9000])
def test_tegrastats_of_anything_else_is_nothing(text):
    assert collect_tegrastats.parse(text) is None


@pytest.mark.parametrize("path", sorted((FIXTURES / "tegrastats").glob("*.log")), ids=lambda path: path.name)
def test_tegrastats_real_logs(path):
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if not line.startswith(b"#")]
    found = [collect_tegrastats.parse(line) for line in lines]
    assert found
    for sample in found:
        assert sample["total_w"] > 1
        assert 20 < max(sample["temp_c"].values()) < 100
        assert sample["clock_mhz"]["cpu"] > 300


def tree(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def test_ina_reads_labelled_channels_and_the_board(tmp_path):
    rails, board = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3", "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon4"
    files = {"in1_label": "VDD_GPU", "in1_input": 5000, "curr1_input": 300, "curr1_crit_alarm": 0}
    files |= {"in2_label": "VDD_CPU", "in2_input": 4000, "curr2_input": 500, "curr2_crit_alarm": 1}
    files |= {"in3_label": "NC", "in3_input": 1, "curr3_input": 1, "in7_label": "sum of shunt voltages"}
    tree(tmp_path, **{f"{rails}/{name}": text for name, text in files.items()})
    found = collect_ina.read(tmp_path)
    assert found == {"power_w": {"VDD_GPU": 1.5, "VDD_CPU": 2.0}, "total_w": 3.5, "throttled": ["over-current VDD_CPU"]}
    tree(tmp_path, **{f"{board}/power1_input": 26_500_000})
    assert collect_ina.read(tmp_path)["total_w"] == 26.5
    assert collect_ina.read(tmp_path / "none") is None


def test_rapl_sums_packages_and_leaves_their_parts_out(tmp_path):
    zones = {"0": "package-0", "1": "package-1", "0:0": "core", "0:1": "dram"}
    for number, name in zones.items():
        folder = f"sys/class/powercap/intel-rapl:{number}"
        tree(tmp_path, **{f"{folder}/name": name, f"{folder}/energy_uj": 5_000_000})
        tree(tmp_path, **{f"{folder}/max_energy_range_uj": 9_000_000})
    found = collect_rapl.read(tmp_path)
    assert found == {"energy_j": {"package-0": 5.0, "package-1": 5.0}, "wraps_j": {"package-0": 9.0, "package-1": 9.0}}
    (tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj").write_text("")  # as unreadable as to anyone but root
    assert collect_rapl.read(tmp_path) is None
    assert collect_rapl.read(tmp_path / "none") is None


def test_thermal_reads_zones_clocks_and_what_slows_down(tmp_path):
    files = {"thermal_zone0/type": "soc", "thermal_zone0/temp": 51250, "thermal_zone1/temp": -256000}
    files |= {"cooling_device0/type": "pwm-fan", "cooling_device0/cur_state": 3}
    files |= {"cooling_device1/type": "cpufreq-cpu0", "cooling_device1/cur_state": 2}
    files |= {"cooling_device2/type": "Processor", "cooling_device2/cur_state": 0}
    tree(tmp_path, **{f"sys/class/thermal/{name}": text for name, text in files.items()})
    for core, clock in ((0, 1800000), (1, 600000)):
        tree(tmp_path, **{f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq": clock})
    found = collect_thermal.read(tmp_path)
    assert found["temp_c"] == {"soc": 51.25}
    assert found["throttled"] == ["cpufreq-cpu0 1"]
    assert found["clock_mhz"] == {"cpu": 1800.0, "cpu_lowest": 600.0}
    assert collect_thermal.read(tmp_path / "none") is None


def test_vcgencmd_bits_temperature_clock_and_rails():
    found = collect_vcgencmd.parse(
        "throttled=0x50005\ntemp=62.3'C\nfrequency(0)=2400033792\n"
        "  A_A current(0)=0.50000000A\n  B_A current(1)=2.00000000A\n  A_V volt(8)=3.00000000V\n"
        "  EXT5V_V volt(24)=5.1V\n"
    )
    assert found["throttled"] == ["under-voltage", "throttled"]
    assert found["throttled_since_boot"] == ["under-voltage", "throttled"]
    assert found["temp_c"] == {"soc": 62.3}
    assert found["clock_mhz"]["arm"] == pytest.approx(2400.03, abs=0.01)
    assert found["power_w"] == {"A": 1.5}
    assert found["total_w"] == 1.5
    assert collect_vcgencmd.parse("throttled=0x0")["throttled"] == []
    assert "power_w" not in collect_vcgencmd.parse("throttled=0x0\nCommand not registered")
    assert collect_vcgencmd.parse("VCHI initialization failed") is None


def test_powermetrics_milliwatts_become_watts():
    tree = {
        "elapsed_ns": 1,
        "thermal_pressure": "Moderate",
        "processor": {"cpu_power": 1500.0, "gpu_power": 20, "ane_power": 0},
    }
    found = collect_powermetrics.parse(b"\0" + plistlib.dumps(tree))
    assert found["power_w"] == {"cpu": 1.5, "gpu": 0.02, "ane": 0.0}
    assert found["total_w"] == pytest.approx(1.52)
    assert found["throttled"] == ["pressure Moderate"]
    tree["processor"]["combined_power"] = 1600.0
    tree["thermal_pressure"] = "Nominal"
    found = collect_powermetrics.parse(plistlib.dumps(tree))
    assert (found["total_w"], found["throttled"]) == (1.6, [])
    for text in (
        b"",
        b"\0",
        plistlib.dumps({}),
        plistlib.dumps(tree)[:-20],
        plistlib.dumps({"processor": 3}),
        b"\xff" * 99,
    ):
        assert collect_powermetrics.parse(text) is None


def test_every_collector_of_the_table_reads_or_parses():
    for path in COLLECTORS.values():
        module = import_module(path)
        assert module.INTERVAL_S > 0
        assert hasattr(module, "read") != (hasattr(module, "command") and hasattr(module, "parse"))


def test_energy_of_constant_and_of_rising_power():
    times = [0, 1, 2, 3, 4]
    assert integral(times, [5] * 5, 0.5, 3.5) == pytest.approx(15)
    assert integral(times, [0, 2, 4, 6, 8], 1, 3) == pytest.approx(8)
    assert integral([1, 2], [3, 5], 0, 1) == pytest.approx(3)  # before the first sample: the first value
    assert unwrapped([90, 5, 3], 100) == [90, 105, 203]
    assert per_inference(10.0, 5.0, 10, None).net_j is None
    assert per_inference(10.0, 5.0, 10, 1.0) == (1.0, 0.5)


def powered(*watts, step=0.5):
    return [{"t": number * step, "total_w": value} for number, value in enumerate(watts)]


def test_a_window_has_energy_with_idle_subtracted():
    samples = powered(1, 1, 3, 3, 3, 1, 1)
    assert mean_w(samples, 0, 0.5) == pytest.approx(1)
    found = window(samples, 1, 2, 4, idle_w=1.0)
    assert found["power_w"] == pytest.approx(3)
    assert found["energy_j_per_inference"] == {"gross": pytest.approx(0.75), "net": pytest.approx(0.5)}
    assert found["samples"] == 3
    assert window(samples, 1, 2, 4, None)["energy_j_per_inference"]["net"] is None


def test_a_window_without_close_samples_has_no_energy():
    assert energy_j(powered(1, 1, 1, step=5), 0, 10) is None
    assert energy_j(powered(1, 1), 0, 9) is None
    assert energy_j(powered(1), 0, 1) is None
    assert energy_j([], 0, 1) is None
    assert "energy_j_per_inference" not in window([], 0, 1, 5, 1.0)


def test_counters_are_read_across_their_wrap():
    samples = [{"t": t, "energy_j": {"a": j}, "wraps_j": {"a": 100}} for t, j in ((0, 80), (1, 90), (2, 0), (3, 10))]
    assert energy_j(samples, 0.5, 2.5) == pytest.approx(20)


def test_heat_clocks_and_limits_of_a_window():
    looks = [(1.0, 40, 900, []), (2.0, 52, 700, ["cap"]), (3.0, 50, 800, []), (9.0, 99, 1, ["later"])]
    samples = [
        {"t": t, "temp_c": {"a": temp, "b": 1}, "clock_mhz": {"cpu": mhz}, "throttled": limits, "ram_bytes": mhz}
        for t, temp, mhz, limits in looks
    ]
    found = window(samples, 0.5, 3.5, 1, None)
    assert found["temp_c"] == {"start": 40, "end": 50, "max": 52}
    assert found["clock_mhz"] == {"cpu": [700, 900]}
    assert found["throttled"] == ["cap"]
    assert found["ram_bytes"] == 900

"""Collector `vcgencmd` (Raspberry Pi): temperature, clock, the firmware's throttling bits, and on a Pi 5 the rails.

The rails of the Pi 5's power chip are not the whole: what the USB ports take is not among them.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, Optional

PROGRAM = "vcgencmd"
INTERVAL_S = 1.0  # each look starts four programs
QUERIES = ("get_throttled", "measure_temp", "measure_clock arm", "pmic_read_adc")
"""What is asked each time; the answers are parsed together. The last is an error before the Pi 5."""

BITS = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
"""Bits 0 to 3: holds now. Bits 16 to 19: has held since boot."""

_THROTTLED = re.compile(r"\bthrottled=0x([0-9a-fA-F]{1,8})\b")
_TEMP = re.compile(r"\btemp=(-?\d+(?:\.\d+)?)'C")
_CLOCK = re.compile(r"\bfrequency\(\d+\)=(\d{1,12})\b")
_ADC = re.compile(r"\b(\w+)_([VA]) (?:volt|current)\(\d+\)=(\d+(?:\.\d+)?)[VA]")


def read(root: Path = Path("/")) -> Optional[dict[str, Any]]:  # noqa: UP045 (read by Python 3.9 on devices)
    """Ask all of `QUERIES`; `root` is what the other collectors read from."""
    answers = [
        subprocess.run([PROGRAM, *query.split()], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout
        for query in QUERIES
    ]
    return parse(b"\n".join(answers).decode("utf-8", "replace"))


def parse(text: str) -> Optional[dict[str, Any]]:  # noqa: UP045 (read by Python 3.9 on devices)
    """The answers to `QUERIES` as a sample without `t`; None where none of them is one.

    >>> parse("throttled=0x50004")["throttled"]
    ['throttled']
    """
    found: dict[str, Any] = {}
    bits = _THROTTLED.search(text)
    if bits:
        value = int(bits[1], 16)
        found["throttled"] = [name for number, name in enumerate(BITS) if value >> number & 1]
        found["throttled_since_boot"] = [name for number, name in enumerate(BITS) if value >> (16 + number) & 1]
    temperature, clock = _TEMP.search(text), _CLOCK.search(text)
    if temperature:
        found["temp_c"] = {"soc": float(temperature[1])}
    if clock:
        found["clock_mhz"] = {"arm": int(clock[1]) / 1e6}
    rails: dict[str, dict[str, float]] = {}
    for rail, unit, number in _ADC.findall(text):
        rails.setdefault(rail, {})[unit] = float(number)
    power = {rail: pair["V"] * pair["A"] for rail, pair in rails.items() if len(pair) == 2}
    if power:
        found["power_w"] = power
        found["total_w"] = sum(power.values())
    return found or None

"""Collector `powermetrics` (macOS, root): Apple's estimate of what CPU, GPU and Neural Engine draw.

The manual calls the values estimates, not to be compared between devices. Each sample is one property list; a NUL byte
stands between two.
"""

from __future__ import annotations

import plistlib
from typing import Any, Optional

INTERVAL_S = 0.2
PROGRAM = "powermetrics"
ROOT = True
END = b"</plist>\n"
"""What a sample ends with."""
NOMINAL = "Nominal"


def command() -> list[str]:
    """The program, which prints a property list every so often until it is ended."""
    samplers = "cpu_power,gpu_power,ane_power,thermal"
    return [PROGRAM, "--samplers", samplers, "-i", f"{INTERVAL_S * 1000:.0f}", "-f", "plist"]


def parse(text: bytes) -> Optional[dict[str, Any]]:  # noqa: UP045 (read by Python 3.9 on devices)
    """One property list as a sample without `t`; None for anything else. Milliwatts become watts."""
    try:
        tree = plistlib.loads(text.strip(b"\0\r\n "))
        processor = tree["processor"]
        power = {
            part: float(processor[f"{part}_power"]) / 1e3
            for part in ("cpu", "gpu", "ane")
            if f"{part}_power" in processor
        }
        whole = processor.get("combined_power")
        total = float(whole) / 1e3 if whole is not None else sum(power.values())
        pressure = str(tree.get("thermal_pressure", NOMINAL))
    except Exception:  # whatever plistlib makes of a truncated or foreign text, it is no sample
        return None
    if not power:
        return None
    return {"power_w": power, "total_w": total, "throttled": [] if pressure == NOMINAL else [f"pressure {pressure}"]}

"""Collector `rapl`: the energy counters of x86 CPUs, which root may read. The whole is the sum of the packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

INTERVAL_S = 0.1


def read(root: Path = Path("/")) -> Optional[dict[str, Any]]:  # noqa: UP045 (read by Python 3.9 on devices)
    """Every package's counter now, as a sample without `t`; None where there is none, or it cannot be read."""
    joules: dict[str, float] = {}
    wraps: dict[str, float] = {}
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text("ascii", "replace").strip()
            if not name.startswith("package"):  # core, uncore and dram are parts; psys counts the packages again
                continue
            joules[name] = int((folder / "energy_uj").read_text("ascii")) / 1e6
            wraps[name] = int((folder / "max_energy_range_uj").read_text("ascii")) / 1e6
        except (OSError, ValueError):
            return None
    return {"energy_j": joules, "wraps_j": wraps} if joules else None

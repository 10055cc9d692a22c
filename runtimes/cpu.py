"""What this machine's CPU computes exactly in 8 bits."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
WIDE_SUMS = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""x86 flags of instructions that sum u8 * s8 in 32 bits; older ones sum pairs in 16, which saturate."""


def is_arm() -> bool:
    """Whether this is a 64-bit ARM."""
    return platform.machine().lower().startswith(("arm", "aarch64"))


def has_wide_sums() -> bool:
    """Whether an x86 sums 8-bit products in 32 bits. Where nothing tells, no: what needs none is right everywhere."""
    try:
        return bool(set(CPUINFO.read_text().split()) & WIDE_SUMS)
    except OSError:
        return False


def unmeasured(precision: str) -> tuple[str, ...]:
    """Why an engine of this precision should be timed, where nobody asked for it."""
    if precision != "int8+w7":
        return ()
    return (
        "int8+w7 is for CPUs without 8-bit sums in 32 bits (VNNI, AMX), where int8 may be slower than float32: see "
        "edgevit profile, or let --min-speedup decide",
    )

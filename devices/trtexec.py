"""trtexec: where it is, which version it is, and the command lines that mean the same on 8.6, 10 and 11.

Pure functions of text and paths: the machine that builds the lines is rarely the one that runs them. Every default
that a major version flipped (CUDA graph, spinning, copies in the timed loop) is given; a flag that became the default
is still taken. Precision is in the ONNX file, never a flag.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from edgevit.errors import MeasureError

PLACES = (
    "/usr/src/tensorrt/bin/trtexec",  # Jetson and Debian packages, on no PATH
    "/opt/tensorrt/bin/trtexec",
    "/usr/local/tensorrt/bin/trtexec",
)
BANNER = re.compile(r"&&&& (RUNNING|PASSED|FAILED) TensorRT\.trtexec \[TensorRT v([\d.]+)\]")


class Version(NamedTuple):
    """Of TensorRT."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return ".".join(map(str, self))


def find(environment: Mapping[str, str], which: Callable[[str], str | None], exists: Callable[[str], bool]) -> str:
    """The program: `$TRTEXEC`, then the PATH, then where packages put it. Wheels of tensorrt bring none.

    Raises MeasureError.
    """
    named = environment.get("TRTEXEC")
    if named:
        if not exists(named):
            raise MeasureError(f"TRTEXEC={named} does not exist; name the program, as {PLACES[0]}")
        return named
    found = which("trtexec") or next((place for place in PLACES if exists(place)), None)
    if found is None:
        raise MeasureError(f"no trtexec: not on the PATH, nor {', '.join(PLACES)}; set TRTEXEC to the program")
    return found


def version_command(trtexec: str) -> list[str]:
    """Its first line is the banner; `--version` ends in an error on 11, which then wants a model."""
    return [trtexec, "--help"]


def parse_version(text: str) -> Version:
    """Of any output with a banner. Up to 9 a number is of thousands (8601), from 10 on of ten thousands (101601).

    >>> parse_version("&&&& RUNNING TensorRT.trtexec [TensorRT v8412] # trtexec")
    Version(major=8, minor=4, patch=12)
    >>> parse_version("&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b106] # trtexec")
    Version(major=11, minor=1, patch=0)
    """
    found = BANNER.search(text)
    if found is None:
        raise MeasureError(f"this is no output of trtexec, it has no banner: {text.strip()[:80]!r}")
    if "." in found[2]:
        major, minor, patch = [*found[2].split("."), "0", "0"][:3]
        return Version(int(major), int(minor), int(patch))
    number = int(found[2])
    unit = 10_000 if number >= 100_000 else 1_000
    return Version(number // unit, number % unit // 100, number % 100)


def build_command(
    trtexec: str, version: Version, onnx: str, plan: str, layers: str, timing_cache: str = ""
) -> list[str]:
    """ONNX → engine, and a description of its layers (`edgevit.devices.trt_layers`). Raises MeasureError below 10."""
    if version.major < 10:
        raise MeasureError(
            f"TensorRT {version} has no strongly typed networks: it would choose types by itself; use TensorRT 10 or "
            "later (JetPack 6.1 or later)"
        )
    command = [trtexec, f"--onnx={onnx}", f"--saveEngine={plan}", "--skipInference"]
    command += ["--profilingVerbosity=detailed", f"--exportLayerInfo={layers}"]
    if version.major == 10:
        command.append("--stronglyTyped")  # 11 knows nothing else
    if timing_cache:
        command.append(f"--timingCacheFile={timing_cache}")
    return command


def profile_command(trtexec: str, plan: str, profile: str) -> list[str]:
    """Time every layer, into the file `profile` (`edgevit.devices.trt_layers.read_profile`); it slows the engine."""
    return [trtexec, f"--loadEngine={plan}", "--dumpProfile", f"--exportProfile={profile}", "--iterations=200"]


def measure_command(
    trtexec: str, version: Version, plan: str, times: str, seconds: float = 5, transfers: bool = False
) -> list[str]:
    """Single inferences of an engine, each one's times in the JSON file `times` (`edgevit.devices.trtexec_log`).

    seconds: of sampling; time stamps are 32-bit floats of milliseconds since the start, so many short runs are more
    exact than a long one. transfers: the copies of inputs and outputs belong to an inference.
    """
    if not 0 < seconds <= 10:
        raise MeasureError(f"seconds={seconds:g} must be above 0 and at most 10: its clock coarsens with the run")
    command = [trtexec, f"--loadEngine={plan}", "--useCudaGraph", "--useSpinWait"]
    command += ["--warmUp=2000", f"--duration={seconds:g}", "--iterations=200", "--avgRuns=1"]
    command += ["--percentile=50,90,95,99", "--infStreams=1", f"--exportTimes={times}"]
    if not transfers:
        command.append("--noDataTransfers")
    elif version.major >= 11:
        command.append("--includeDataTransfers")
    return command

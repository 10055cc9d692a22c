"""Latency of the whole cluster: an actor on the node that owns the device, and the meter that asks it."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgevit.bundle import Bundle
from edgevit.errors import EdgeVitError, MeasureError
from edgevit.runtimes import runtime
from edgevit.tune.meter import Meter, Timing, check_times, meter
from edgevit.tune.on_ray.carry import Packed, pack, unpack
from edgevit.tune.on_ray.place import Claim, claim, machine
from edgevit.tune.turns import Turns


class Device:
    """Runs on the device's node; Ray calls it for one session after another."""

    def __init__(self, device: str, target: str) -> None:
        see_gpus()
        self.device, self.target = device, target

    @cached_property
    def meter(self) -> Meter:
        """Raises EdgeVitError: this node cannot time the target, or does not know the device."""
        found, target = meter(self.device), runtime(self.target)
        if found.local:
            target.version()
            check_times(found, target)
        return found

    @cached_property
    def claim(self) -> Claim:
        """Where bundles lie while they are measured."""
        return claim()

    def ready(self) -> str:
        """What records call the meter. Raises EdgeVitError."""
        return f"{self.meter.name} ({socket.gethostname()})" if self.meter.local else self.meter.name

    def time(self, candidates: Sequence[Packed], dense: Packed, long: bool) -> list[Timing]:
        """As `Meter.time`; where that is on this machine, no worker here computes meanwhile. Raises MeasureError."""
        place = self.claim.folder / "measured"
        quiet = Turns(machine()).quiet() if self.meter.local else nullcontext()
        try:
            own, base = [unpack(one, place) for one in candidates], unpack(dense, place / "base")
            with quiet:
                timings = self.meter.time(own, base, long)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return [replace(timing, meter=self.ready()) for timing in timings]

    def leave(self) -> None:
        """Nothing of this process is left on the disk."""
        self.claim.remove()


class FarMeter:
    """The meter of the driver and of every worker. lost: the actor died under a question."""

    local = False

    def __init__(self, device: Any, name: str) -> None:
        self.device, self.name, self.lost = device, name, False
        self.dense: tuple[Path, Any] | None = None

    def time(self, candidates: Sequence[Bundle], dense: Bundle, long: bool = False) -> list[Timing]:
        """Asks the device's node. Raises MeasureError."""
        import ray

        if self.dense is None or self.dense[0] != dense.folder:
            self.dense = dense.folder, ray.put(pack(dense))  # the same one for every candidate
        try:
            asked = self.device.time.remote([pack(one) for one in candidates], self.dense[1], long)
            found: list[Timing] = ray.get(asked)
        except ray.exceptions.RayTaskError as error:
            raise cause(error) from None
        except ray.exceptions.RayError as error:
            self.lost = True
            raise MeasureError("the process on the device's node died; the same command goes on") from error
        return found


def told(where: str, error: Any) -> Exception:
    """`cause`, with the node that says it."""
    found = cause(error)
    return EdgeVitError(f"{where}: {found}") if isinstance(found, EdgeVitError) else found


def cause(error: Any) -> Exception:
    """What was raised on the node, where a user can fix it; else all that Ray says, with the node's traceback."""
    return error.cause if isinstance(error.cause, EdgeVitError) else error  # type: ignore[no-any-return]


def see_gpus() -> None:
    """Ray hides the GPUs from an actor that asks for none; ours have their node to themselves."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]

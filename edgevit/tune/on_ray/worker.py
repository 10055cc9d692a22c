"""What a node does for a study, in a folder of its own: trials, and shares of an evaluation."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from edgevit.bundle import write_json
from edgevit.data import Dataset
from edgevit.errors import EdgeVitError
from edgevit.evaluate import Evaluation, evaluate
from edgevit.tune.fidelity import bundle_name, run_trial
from edgevit.tune.on_ray.carry import Packed, pack, unpack
from edgevit.tune.on_ray.device import FarMeter, see_gpus
from edgevit.tune.on_ray.place import Claim, claim, machine
from edgevit.tune.record import Job, Record
from edgevit.tune.settings import TuneSettings
from edgevit.tune.turns import Turns
from edgevit.tune.workshop import BASELINE, Part, Workshop
from edgevit.version import __version__


@dataclass(frozen=True)
class Base:
    """What every trial is compared with: the dense bundle, and its answers as `baseline.json` has them."""

    dense: Packed
    baseline: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """A trial's record; bundle: where it was measured."""

    record: Record
    bundle: Packed | None


class Worker:
    """Runs on a node. Making one is cheap and raises nothing; what must be right there is told by `ready`."""

    def __init__(self, settings: TuneSettings, meter: FarMeter, threads: int) -> None:
        see_gpus()
        self.settings, self.meter, self.threads = settings, meter, threads

    @cached_property
    def claim(self) -> Claim:
        """This process's folder."""
        return claim()

    @cached_property
    def shop(self) -> Workshop:
        """The model and the images as this node has them. Raises EdgeVitError."""
        import torch

        torch.set_num_threads(self.threads)
        shop = Workshop(replace(self.settings, out=self.claim.folder), self.meter)
        shop.turns = Turns(machine())  # several nodes may be one machine
        return shop

    def ready(self, expected: Mapping[str, str]) -> None:
        """Load. Raises EdgeVitError: what is here is not what the driver has."""
        for what, given in fingerprint(self.shop).items():
            if given != expected[what]:
                raise EdgeVitError(f"{what} is {given} here and {expected[what]} at the driver; make them the same")

    def evaluate(self, packed: Packed, part: Part, start: int, stop: int) -> Evaluation:
        """A bundle on the images from `start` to `stop`. Raises DataError, RuntimeRefusal."""
        data = getattr(self.shop, part)
        bundle = unpack(packed, self.claim.folder / "evaluated")
        share = Dataset(data.name, data.files[start:stop], data.labels[start:stop])
        with self.shop.turns.computing():
            return evaluate(bundle, share)

    def trial(self, job: Job, base: Base) -> Ended | None:
        """All looks; None where the device's process died under it."""
        folder, name = self.claim.folder, bundle_name(job.trial)
        if not (folder / BASELINE).exists():
            unpack(base.dense, folder / "bundles")
            write_json(folder / BASELINE, base.baseline)
        self.meter.lost = False
        record = run_trial(self.shop, job)
        built = folder / "bundles" / name
        try:
            if self.meter.lost:
                return None
            bundle = self.shop.bundle(name) if record.state == "complete" else None
            return Ended(record, pack(bundle) if bundle else None)
        finally:
            shutil.rmtree(built, ignore_errors=True)

    def leave(self) -> None:
        """Nothing of this process is left on the disk."""
        self.claim.remove()


def fingerprint(shop: Workshop) -> dict[str, str]:
    """What must be the same on every node that gives answers.

    Precisions differ where processors do: int8 saturates on some.
    """
    data = {"--calib": shop.calib, "--eval": shop.search, "--holdout": shop.holdout}
    seen = {flag: f"{len(d)} images ({_digest(d)})" for flag, d in data.items()}
    return {
        "edgevit": __version__,
        shop.target.name: shop.target.version(),
        "the list of precisions": ", ".join(shop.space.precisions),
        "the model": f"sha256 {shop.checkpoint.sha256[:12]}",
        **seen,
    }


def _digest(data: Dataset) -> str:
    """Of names and labels; images are not read."""
    text = "\n".join(f"{file.name},{label}" for file, label in zip(data.files, data.labels, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()[:12]

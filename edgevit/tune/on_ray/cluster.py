"""The connection to a Ray cluster, and what of a study is done where on it."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgevit.bundle import Bundle
from edgevit.errors import EdgeVitError, missing_extra
from edgevit.evaluate import Evaluation
from edgevit.tune.fidelity import bundle_name
from edgevit.tune.on_ray.carry import pack, unpack
from edgevit.tune.on_ray.device import Device, FarMeter, told
from edgevit.tune.on_ray.staff import LEAVE_S, START_S, Node, Staff
from edgevit.tune.on_ray.worker import Base, Worker, fingerprint
from edgevit.tune.record import TRIES, Job, Record
from edgevit.tune.workshop import BASELINE, BY_IMAGE, Part, Workshop

if TYPE_CHECKING:
    from edgevit.tune.settings import TuneSettings

RESOURCE = "edgevit-device"
START_IT = f"ray start --resources '{{\"{RESOURCE}\": 1}}'"
SHARES = 4
"""Of an evaluation for each worker: a slow node holds the others up for one share at most."""
LEAST = 16
"""Images of a share: opening the engine takes as long as some."""


def import_ray() -> Any:
    """The package. Raises MissingExtra."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise missing_extra("ray", error) from error
    return ray


@contextlib.contextmanager
def cluster(settings: TuneSettings) -> Iterator[Cluster]:
    """Connected to `--ray`, and not longer: Ray ends a connected process with its cluster. Raises EdgeVitError.

    A program that is connected already stays so. What Ray prints meanwhile, as of a node that died, goes to stderr.
    """
    ray = import_ray()
    ours = not ray.is_initialized()
    with contextlib.redirect_stdout(sys.stderr):
        if ours:
            _connect(str(settings.ray))
        try:
            with contextlib.closing(Cluster(settings)) as found:
                yield found
        finally:
            if ours:
                ray.shutdown()


def _connect(address: str) -> None:
    import ray

    try:
        with warnings.catch_warnings():  # on what later versions of Ray will do
            warnings.simplefilter("ignore")
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise EdgeVitError(
            f"--ray {address}: this machine is no node of a running cluster ({said}); `ray start --head`, or "
            "`ray start --address=HOST:PORT`, makes it one"
        ) from error


class Cluster:
    """Where the work of a study is done. Raises EdgeVitError: no node owns the device, or more than one."""

    def __init__(self, settings: TuneSettings) -> None:
        self.settings = settings.anywhere()
        self.staff: Staff | None = None
        self.device: Any = None
        nodes()

    @cached_property
    def meter(self) -> FarMeter:
        """Asks the node that owns the device, which nobody else holds meanwhile. Raises EdgeVitError."""
        import ray

        hire = ray.remote(Device).options(num_cpus=0, resources={RESOURCE: 1}, max_restarts=-1)
        self.device = hire.remote(self.settings.device, self.settings.target)
        try:
            return FarMeter(self.device, ray.get(self.device.ready.remote(), timeout=START_S))
        except ray.exceptions.GetTimeoutError as error:
            raise EdgeVitError(
                f"the node with {RESOURCE} gave nothing within {START_S:g} s: another study may hold it (`ray status`)"
            ) from error
        except ray.exceptions.RayTaskError as error:
            raise told(f"the node with {RESOURCE}", error) from None
        except ray.exceptions.RayError as error:
            said = " ".join(str(error).split())[:200]
            raise EdgeVitError(f"nothing starts on the node with {RESOURCE} ({said})") from error

    def evaluate(self, shop: Workshop, bundle: Bundle, part: Part) -> Evaluation:
        """As `evaluate`, in shares over the workers. Raises EdgeVitError."""
        import ray

        staff = self._staff(shop)
        packed, count = ray.put(pack(bundle)), len(getattr(shop, part))
        batch = bundle.engine.inputs.batch
        share = max(LEAST, -(-count // (SHARES * staff.size)))
        size = -(-share // batch) * batch  # whole batches: only the last one is padded
        todo = [(start, min(start + size, count)) for start in range(0, count, size)][::-1]
        found: dict[int, Evaluation] = {}
        deaths: Counter[int] = Counter()
        while sum(len(done.ranks) for done in found.values()) < count:
            while todo and staff.room:
                ends = todo.pop()
                staff.submit(ends, "evaluate", packed, part, *ends)
            for ends, done in staff.wait():
                if done is not None:
                    found[ends[0]] = done
                    continue
                todo.append(ends)
                deaths[ends[0]] += 1
                if deaths[ends[0]] >= TRIES:
                    raise EdgeVitError(f"{TRIES} workers died evaluating {bundle.name} on images from {ends[0]}")
            shop.progress(f"evaluate {bundle.name}", sum(len(done.ranks) for done in found.values()), count)
        shares = [found[start] for start in sorted(found)]
        joined: dict[str, Any] = {key: sum((getattr(one, key) for one in shares), start=()) for key in BY_IMAGE}
        return replace(shares[0], bundle=bundle.name, seconds=sum(one.seconds for one in shares), **joined)

    def pool(self, shop: Workshop) -> OnRay:
        """The workers, for trials."""
        return OnRay(shop, self._staff(shop))

    def close(self) -> None:
        """End what runs on the nodes."""
        import ray

        if self.staff:
            self.staff.close()
        if self.device:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self.device.leave.remote(), timeout=LEAVE_S)
            ray.kill(self.device)

    def _staff(self, shop: Workshop) -> Staff:
        """Hired once, for the whole study."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        expected = fingerprint(shop)

        def hire(node: Node) -> tuple[Any, Any]:
            there = NodeAffinitySchedulingStrategy(node.key, soft=False)
            worker = ray.remote(Worker).options(num_cpus=node.cpus, scheduling_strategy=there)
            actor = worker.remote(self.settings, self.meter, int(node.cpus))
            return actor, actor.ready.remote(expected)

        if self.staff is None:
            shop.progress("start the workers on the nodes", 0, 0)
            self.staff = Staff(hire, nodes)
        return self.staff


class OnRay:
    """Trials on the nodes; the engine of one that was measured comes back into the study's folder."""

    def __init__(self, shop: Workshop, staff: Staff) -> None:
        import ray

        self.shop, self.staff = shop, staff
        self.jobs: dict[int, Job] = {}
        baseline = json.loads((shop.settings.out / BASELINE).read_text(encoding="utf-8"))
        self.base = ray.put(Base(pack(shop.dense), baseline))

    @property
    def room(self) -> int:
        """Workers without a trial."""
        return self.staff.room

    def submit(self, job: Job) -> None:
        """Hand a trial to a free worker."""
        self.jobs[job.trial] = job
        self.staff.submit(f"trial {job.trial}", "trial", job, self.base)

    def wait(self) -> list[tuple[Job, Record | None]]:
        """Until a trial ends, or its worker. Raises EdgeVitError: the device's node is gone."""
        ended: list[tuple[Job, Record | None]] = []
        for task, found in self.staff.wait():
            job = self.jobs.pop(int(task.split()[1]))
            if found is None:
                ended.append((job, None))
                continue
            if found.bundle:
                unpack(found.bundle, self.shop.settings.out / "bundles")
            command = self.shop.settings.command(self.shop.space.point(job.params), bundle_name(job.trial))
            ended.append((job, replace(found.record, command=command)))  # with paths as they were given
        return ended

    def close(self) -> None:
        """The workers stay for the images held back."""


def nodes() -> list[Node]:
    """Those that live now. Raises EdgeVitError: not exactly one of them owns the device."""
    found = alive()
    owners = [node.name for node in found if node.device]
    if not owners:
        raise EdgeVitError(
            f"no node of the Ray cluster has the resource {RESOURCE}: start the one that owns the device with "
            f"`{START_IT}`, then give the same command"
        )
    if len(owners) > 1:
        raise EdgeVitError(
            f"{len(owners)} nodes have the resource {RESOURCE} ({', '.join(owners)}), and latencies of two machines "
            f"do not compare: start only one with `{START_IT}`"
        )
    return found


def alive() -> list[Node]:
    """The nodes of the cluster."""
    import ray

    seen = [(node, node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [Node(node["NodeID"], node["NodeName"], has.get("CPU", 0.0), RESOURCE in has) for node, has in seen]

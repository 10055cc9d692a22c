"""One worker on each node of the cluster. One that dies loses what it was at, and is replaced while its node lives."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgevit.errors import EdgeVitError
from edgevit.tune.on_ray.device import told

START_S = 300.0
"""For all workers to load their model."""
LOOK_S = 2.0
"""Between two looks at the nodes of the cluster."""
LEAVE_S = 5.0
STARTS = 3
"""Workers of one node that may die one after the other before they are ready."""


class Node(NamedTuple):
    """A living node. cpus: those that Ray may use; device: whether it owns one."""

    key: str
    name: str
    cpus: float
    device: bool


@dataclass(eq=False)
class Hand:
    """A worker's actor on its node; task: what it is at, None while it starts."""

    node: Node
    actor: Any
    task: Hashable = None


class Staff:
    """hire: an actor on a node, and the reference that resolves when it is ready. nodes: those that live now.

    Both may raise EdgeVitError, and so may `wait`, for what a node says that a user must fix.
    """

    def __init__(self, hire: Callable[[Node], tuple[Any, Any]], nodes: Callable[[], Sequence[Node]]) -> None:
        self.hire, self.nodes = hire, nodes
        self.free: list[Hand] = []
        self.busy: dict[Any, Hand] = {}  # by the reference that is waited for
        self.deaths: Counter[str] = Counter()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """All of them, so that a node that lacks something is told before the first trial."""
        end = time.monotonic() + START_S
        self._fill()
        while self.busy:
            self._look()
            if self.busy and time.monotonic() > end:
                names = ", ".join(hand.node.name for hand in self.busy.values())
                raise EdgeVitError(
                    f"no worker within {START_S:g} s on {names}: `ray status` says whether other jobs hold its CPUs"
                )

    @property
    def room(self) -> int:
        """Workers that are ready and have nothing to do."""
        return len(self.free)

    @property
    def size(self) -> int:
        """Workers, those that start included."""
        return len(self.free) + len(self.busy)

    def submit(self, task: Hashable, method: str, *arguments: Any) -> None:
        """Have a free worker call a method of its own."""
        hand = self.free.pop()
        hand.task = task
        self.busy[getattr(hand.actor, method).remote(*arguments)] = hand

    def wait(self) -> list[tuple[Any, Any]]:
        """Tasks that ended, at least one, with what they gave; None where the worker died.

        Afterwards somebody is free, or at a task that will end.
        """
        ended: list[tuple[Any, Any]] = []
        while not ended or not (self.free or any(hand.task for hand in self.busy.values())):
            ended += self._look()
        return ended

    def close(self) -> None:
        """End all of them; what one is at is lost."""
        import ray

        left = [hand.actor.leave.remote() for hand in self.free]
        with contextlib.suppress(ray.exceptions.RayError):
            ray.wait(left, num_returns=len(left), timeout=LEAVE_S) if left else None
        for hand in [*self.free, *self.busy.values()]:
            ray.kill(hand.actor)

    def _look(self) -> list[tuple[Any, Any]]:
        """Wait a moment for whoever ends first; hire where a node has nobody."""
        import ray

        ended: list[tuple[Any, Any]] = []
        for reference in ray.wait(list(self.busy), timeout=LOOK_S)[0] if self.busy else ():
            hand = self.busy.pop(reference)
            task, hand.task = hand.task, None
            try:
                found = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                self.free.append(hand)
                raise told(f"node {hand.node.name}", error) from None
            except ray.exceptions.RayError as error:
                ray.kill(hand.actor)  # a node that is only out of reach
                self._died(hand.node, error if task is None else None)
                found = None
            else:
                self.free.append(hand)
                self.deaths.pop(hand.node.key, None)
            if task is not None:
                ended.append((task, found))
        self._fill()
        return ended

    def _fill(self) -> None:
        """A worker for every node that has none, those included that joined since."""
        nodes = self.nodes()
        taken = {hand.node.key for hand in [*self.free, *self.busy.values()]}
        for node in nodes:
            if node.cpus >= 1 and node.key not in taken:
                actor, ready = self.hire(node)
                self.busy[ready] = Hand(node, actor)
        if not self.size:
            raise EdgeVitError("no node of the Ray cluster has a CPU for trials: `ray start --num-cpus` gives them")

    def _died(self, node: Node, starting: Exception | None) -> None:
        """Count deaths in a row before a worker was ready. Raises EdgeVitError."""
        self.deaths[node.key] += starting is not None
        if self.deaths[node.key] >= STARTS and node.key in {n.key for n in self.nodes()}:
            said = " ".join(str(starting).split())[:200]
            raise EdgeVitError(f"node {node.name}: its worker died {STARTS} times while it started ({said})")

"""Where the work of a study is done: on this machine, or on the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from edgevit.tune.meter import Meter, meter
from edgevit.tune.pool import Here, Pool
from edgevit.tune.workers import Workers
from edgevit.tune.workshop import alone

if TYPE_CHECKING:
    from edgevit.bundle import Bundle
    from edgevit.evaluate import Evaluation
    from edgevit.tune.settings import TuneSettings
    from edgevit.tune.workshop import Part, Workshop


class Site(Protocol):
    """All that differs between one process and a cluster."""

    @property
    def meter(self) -> Meter:
        """Measures latency."""

    def evaluate(self, shop: Workshop, bundle: Bundle, part: Part) -> Evaluation:
        """A bundle on all images of a part."""

    def pool(self, shop: Workshop) -> Pool:
        """Runs trials."""


class ThisMachine:
    """`--workers`."""

    def __init__(self, settings: TuneSettings) -> None:
        self.meter = meter(settings.device)

    def evaluate(self, shop: Workshop, bundle: Bundle, part: Part) -> Evaluation:
        """In this process."""
        return alone(shop, bundle, part)

    def pool(self, shop: Workshop) -> Pool:
        """One trial at a time in this process, or several beside it."""
        settings = shop.settings
        return Here(shop) if settings.workers == 1 else Workers(settings, settings.workers)


@contextmanager
def site(settings: TuneSettings) -> Iterator[Site]:
    """Raises EdgeVitError: the cluster or its device cannot be used."""
    if settings.ray is None:
        yield ThisMachine(settings)
        return
    from edgevit.tune.on_ray.cluster import cluster

    with cluster(settings) as found:
        yield found

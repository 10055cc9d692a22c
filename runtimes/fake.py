"""Target `fake`: runs the exported program itself in torch. For tests; every record says fake."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.quant.scheme import QuantScheme
from edgevit.runtimes.base import Policy, Session
from edgevit.stages import Engine, Graph, Refusal

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Fake:
    """Saves the program with torch.export and runs it eagerly; latencies come from `runner_fake.py`."""

    name = "fake"
    extra = "test"
    runner = "fake"
    checked_by = "the program itself, in torch (fake)"
    unverified = ()
    policy = Policy(
        precisions=("fp32", "int8"),
        int8="int8",
        scheme=QuantScheme(),
        rewrites=(),
        lowering="gather",
        tolerance={"fp32": 1e-5, "int8": None},  # the same kernels; only the trace lies between
    )

    def version(self) -> str:
        """It has none."""
        return "fake"

    def resolve(self, precision: str) -> str:
        """Names are exact already."""
        return precision

    def runs_here(self, precision: str = "") -> str | None:
        """It does."""
        return None

    def refuses(self, graph: Graph) -> list[Refusal]:
        """Nothing."""
        return []

    def build(self, graph: Graph, folder: Path, precision: str) -> Engine:
        """Save the program."""
        import io

        import torch

        archive = io.BytesIO()  # writing straight to a full disk, torch's archive writer ends the process
        torch.export.save(graph.program, archive)
        (folder / "model.pt2").write_bytes(archive.getvalue())
        files, options = ("model.pt2",), {"latency_ms": 2.0}
        return Engine(folder, self.name, self.version(), precision, files[0], files, graph.inputs, options)

    def open(self, engine: Engine, threads: int | None = None) -> Session:
        """Load the program."""
        return FakeSession(engine)


class FakeSession:
    """The saved program as a function."""

    def __init__(self, engine: Engine) -> None:
        from torch.ao.quantization.fx import _decomposed  # noqa: F401 (defines the operators of a Q/DQ program)

        from edgevit.load_program import read_program

        self.module = read_program(engine.folder / engine.entry).module()

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """One inference."""
        import torch

        with torch.no_grad():
            out: np.ndarray[Any, Any] = self.module(torch.from_numpy(images)).numpy()
        return out

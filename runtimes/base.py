"""What a target must offer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from edgevit.quant.scheme import OTHERS, QuantScheme

if TYPE_CHECKING:
    import numpy as np

    from edgevit.stages import Engine, Graph, Refusal
    from edgevit.tokens.lowering import Lowering


@dataclass(frozen=True)
class Seen:
    """What the numeric check has seen of an engine. by: what `open` ran. unverified: what only the device can tell."""

    by: str
    unverified: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a target wants from the common road, as data.

    precisions: what `--precision` may be; the first is the default. int8: what `--int8` means here.
    schemes: what else int8 may be here, where machines differ: precision → scheme.
    others: further quantized precisions, each a scheme of `edgevit.quant.scheme.OTHERS`.
    rewrites: exact float passes (edgevit.export.rewrite.PASSES) before quantization.
    forms: exact float passes on a reduced program that is not quantized. A dense float program stays as traced: it is
        the baseline.
    explicit: blocks that reduce by attention share one explicit softmax with the attention, where the runtime would
        decompose the fused operator anyhow; else the class token's row is computed again beside the fused kernel.
    tolerance: per precision, the largest difference from eager float32 on real images, relative to the largest output;
        None where only agreement can be judged (8 bits). Each with its reason beside it.
    elsewhere: precisions that are built also where this machine does not compute them, for one that does: what is seen
        of them here then.
    """

    precisions: tuple[str, ...]
    int8: str
    scheme: QuantScheme
    rewrites: tuple[str, ...]
    lowering: Lowering
    schemes: Mapping[str, QuantScheme] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    explicit: bool = False
    tolerance: dict[str, float | None]
    elsewhere: Mapping[str, Seen] = field(default_factory=dict)

    def quantizes(self, precision: str) -> QuantScheme | None:
        """The scheme of a precision; None where nothing becomes an integer."""
        if precision in self.others:
            return OTHERS[precision]
        return self.schemes.get(precision, self.scheme) if precision.startswith("int8") else None


class Session(Protocol):
    """An opened engine."""

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """float32 `[B, 3, H, W]`, exactly the built shape → float32 outputs `[B, ...]`."""


class Runtime(Protocol):
    """One target: a frozen dataclass whose fields are its options (`--option NAME=VALUE`), strings with defaults.

    An option's value is checked where it is set: RuntimeRefusal.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: str
    extra: str
    """The pip extra that brings its packages."""
    runner: str
    """Which script of devices/ measures its engines (a key of `edgevit.devices.plan.RUNNERS`); "" where none can."""
    checked_by: str
    """What `open` runs on this machine, and so what the numeric check has seen."""
    unverified: tuple[str, ...]
    """What only the real device can tell, a sentence each."""
    policy: Policy

    def version(self) -> str:
        """Version of the runtime. Raises MissingExtra when it is not installed."""

    def resolve(self, precision: str) -> str:
        """The exact precision that a short name means on this machine (`int8` → `int8+bf16`)."""

    def runs_here(self, precision: str = "") -> str | None:
        """None where this machine runs the engine itself, else why not. precision: of one engine, where it matters."""

    def refuses(self, graph: Graph) -> list[Refusal]:
        """Nodes of the program this target cannot take, each with the reason; empty when it can."""

    def build(self, graph: Graph, folder: Path, precision: str) -> Engine:
        """Compile into `folder`; the files may lie in folders of their own. Raises RuntimeRefusal, MissingExtra."""

    def open(self, engine: Engine, threads: int | None = None) -> Session:
        """Load what was written and be ready to run it, by `checked_by`. Raises RuntimeRefusal, MissingExtra."""


def seen(target: Runtime, precision: str) -> Seen:
    """What `open` runs of such an engine on this machine, and what that leaves for the device to tell."""
    other = target.policy.elsewhere.get(precision)
    if other and target.runs_here(precision):
        return other
    return Seen(target.checked_by, target.unverified)

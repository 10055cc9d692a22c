"""Which operators of an ExecuTorch program XNNPACK takes, and why not the others."""

from __future__ import annotations

import logging
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph, Node

DELEGATE = "executorch_call_delegate"
UNKNOWN = "XNNPACK has no such operator"
CLEARER = {"invalid dtype": "XNNPACK computes no integers and no booleans"}


class Reasons(logging.Handler):
    """While it is open, what XNNPACK's partitioner says of nodes that it does not take: name → reason."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: dict[str, str] = {}
        self.logger = logging.getLogger("executorch.backends.xnnpack.partition.config")

    def __enter__(self) -> Reasons:
        self.before = self.logger.level, self.logger.propagate
        self.logger.addHandler(self)
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.logger.removeHandler(self)
        level, self.logger.propagate = self.before
        self.logger.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Its message is an object with the node and the reason."""
        message: Any = record.msg
        if hasattr(message, "reason"):
            self.found[message.node.name] = CLEARER.get(message.reason, message.reason)


def partition(program: ExportedProgram, reasons: dict[str, str]) -> dict[str, Any]:
    """For the manifest: operators that XNNPACK takes, of how many, in how many calls; the others with the reason."""
    calls = [node for node in program.graph.nodes if str(node.target) == DELEGATE]
    taken = [getattr(program.graph_module, node.args[0].target).original_module.graph for node in calls]
    inside = sum(len(_operators(graph)) for graph in taken)
    rest = Counter((operator_name(node), reasons.get(node.name, UNKNOWN)) for node in left(program))
    return {
        "delegate": "XNNPACK",
        "operators": inside,
        "of": inside + sum(rest.values()),
        "calls": len(calls),
        "rest": [{"operator": name, "count": count, "reason": why} for (name, why), count in rest.most_common()],
    }


def left(program: ExportedProgram) -> list[Node]:
    """The operators outside the delegate."""
    return [node for node in _operators(program.graph) if str(node.target) != DELEGATE]


def _operators(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "call_function" and "getitem" not in str(node.target)]


def operator_names(graph: Graph) -> set[str]:
    """The operators of a graph, by name."""
    return {operator_name(node) for node in _operators(graph)}


def operator_name(node: Any) -> str:
    """`aten.native_layer_norm.default` → `native_layer_norm`."""
    return str(node.target.__name__).split(".")[-2]

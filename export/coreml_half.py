"""Which operators of an ML Program become float16: all but those that tokens are decided with, and quotients of sums.

In float16 two cosines near 1 differ by 2**-11 or not at all, squares of large keys overflow, and integers beyond 2048
are rounded. So what a top-k, an argmax, a comparison or a cast to integers is computed from stays float32, back to the
nearest layers and residual adds. It would leave the Neural Engine anyhow: the top-k behind it does. Sums over tokens
that are divided by one another overflow (linear attention); the traced program tells them
(`edgevit.quant.quotients`), whose node names coremltools keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LAYERS = {"linear", "conv", "layer_norm", "batch_norm", "instance_norm", "gelu", "silu", "relu"}
MOVES = {"reshape", "transpose", "squeeze", "expand_dims", "split", "slice_by_index", "concat", "identity"}
SCALINGS = {"mul", *MOVES}  # between a layer and its residual add


class Half:
    """The selector that coreml's float16 pass asks, operator by operator; it looks at the whole block once.

    names: of values that are computed in float32.
    """

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.kept: dict[int, Any] | None = None

    def __call__(self, operation: Any) -> bool:
        """Whether an operator (of coremltools' program) computes in float16."""
        if self.kept is None:  # before the pass has changed anything; the values keep the ids alive
            self.kept = {id(found): found for found in single(operation.enclosing_block, self.names)}
        return id(operation) not in self.kept


def single(block: Any, names: set[str]) -> list[Any]:
    """Operators of a block that stay float32: what decides, what has a name of these, and moves behind both."""
    picks, found = deciding(block)
    named = [op for op in block.operations if op.op_type not in LAYERS and any(v.name in names for v in op.outputs)]
    moves = [maker for op in named for maker in _makers(op)]
    while moves:
        operation = moves.pop()
        if operation.op_type in MOVES and id(operation) not in found:
            named.append(operation)
            moves += _makers(operation)
    found |= {id(op): op for op in named}
    # moves of what stays half would only cost a copy
    return [op for op in found.values() if id(op) in picks or op.op_type not in MOVES or _moves_found(op, found)]


def deciding(block: Any) -> tuple[set[int], dict[int, Any]]:
    """Operators of a block that integers or booleans are computed from, back to layers and residual adds.

    First the ids of those that they are read from.
    """
    others = (op for op in block.operations if not _is_float(op) and op.op_type != "quantize")
    waiting = [op for op in others if any(map(_is_float, _makers(op)))]
    picks, found = set(map(id, waiting)), {}
    while waiting:
        operation = waiting.pop()
        if id(operation) in found:
            continue
        found[id(operation)] = operation
        makers = [maker for maker in _makers(operation) if _is_float(maker)]
        waiting += [maker for maker in makers if maker.op_type not in LAYERS and not _is_residual(maker)]
    return picks, found


def _moves_found(operation: Any, found: dict[int, Any]) -> bool:
    """Whether something else that stays float32 lies in front of a move."""
    makers = [maker for maker in _makers(operation) if id(maker) in found]
    return any(maker.op_type not in MOVES or _moves_found(maker, found) for maker in makers)


def _is_residual(operation: Any) -> bool:
    """An add of two computed values of one shape, one of which a layer has just made."""
    if operation.op_type != "add":
        return False
    x, y = operation.x, operation.y
    computed = all(part.op is None or part.op.op_type != "const" for part in (x, y))
    return computed and x.shape == y.shape and (_is_fresh(x.op) or _is_fresh(y.op))


def _is_fresh(operation: Any) -> bool:
    """A layer with weights, possibly scaled or moved."""
    while operation is not None and operation.op_type in SCALINGS:
        operation = next(_makers(operation), None)
    return operation is not None and operation.op_type in ("linear", "conv")


def _makers(operation: Any) -> Iterator[Any]:
    """What computes the inputs; constants do not count."""
    for value in operation.inputs.values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if part.op is not None and part.op.op_type != "const":
                yield part.op


def _is_float(operation: Any) -> bool:
    """Of several values (a top-k's) the last counts: its indices."""
    kind = operation.outputs[-1].dtype.__name__
    return str(kind).startswith("fp")

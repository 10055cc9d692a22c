"""Shape arithmetic that neither the image nor the batch changes becomes numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.errors import LoadError
from edgevit.from_onnx.editing import Editor

if TYPE_CHECKING:
    from edgevit.from_onnx.program import ForeignModel, Seen
    from edgevit.from_onnx.read import Foreign

BATCHES = (2, 3)  # what is the same for both is the same for all


def fix_shapes(foreign: Foreign) -> int:
    """Shape(x), Gather(., 2), Sqrt  becomes  8.0, where x is [N, 17, 64]; how many values. Every shape is noted.

    Shapes that the batch is part of stay; the module works them out when it knows the batch.
    """
    from edgevit.from_onnx.program import ForeignModel

    seen = _observed(ForeignModel(foreign))
    if not seen:
        return 0
    foreign.shapes.update({name: _shape([one[name] for one in seen]) for name in seen[0]})
    foreign.shapes.update({t.name: tuple(t.dims) for t in foreign.model.graph.initializer})
    foreign.shapes.update({name: value.shape for name, value in foreign.weights.items()})
    editor, outputs = Editor(foreign), {o.name for o in foreign.model.graph.output}
    rest, count = [], 0
    for node in foreign.model.graph.node:
        values = [_same([one.get(name) for one in seen]) for name in node.output]
        if not node.output or outputs.intersection(node.output) or any(value is None for value in values):
            rest.append(type(node).FromString(node.SerializeToString()))
            continue
        for name, value in zip(node.output, values, strict=True):
            assert value is not None
            del editor.made[name]
            editor.add(name, value)
            count += 1
    del foreign.model.graph.node[:]
    foreign.model.graph.node.extend(rest)
    return count


def _observed(module: ForeignModel) -> list[Seen]:
    """What the values are for each batch; nothing for a file that says it takes any and does not."""
    from edgevit.from_onnx.program import observe

    try:
        return [observe(module, batch) for batch in ([module.batch] if module.batch else BATCHES)]
    except LoadError:
        if module.batch:
            raise
        observe(module, 1)  # what is wrong with every batch is raised here
        return []


def _same(values: list[Any]) -> np.ndarray | None:
    """The array that a value always is, or None."""
    first = values[0]
    if not isinstance(first, np.ndarray) or not all(isinstance(v, np.ndarray) for v in values):
        return None
    return first if all(np.array_equal(first, v, equal_nan=first.dtype.kind == "f") for v in values[1:]) else None


def _shape(values: list[Any]) -> tuple[int | None, ...]:
    """The dimensions that are always the same, None for the others."""
    shapes = [value.shape if isinstance(value, np.ndarray) else value for value in values]
    if len({len(shape) for shape in shapes}) != 1:
        return ()
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))

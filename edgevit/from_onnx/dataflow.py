"""What an imported module computes from what: its values, those that everything passes through, pieces of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from edgevit.errors import UnsupportedModel
from edgevit.from_onnx.editing import OWN, reads
from edgevit.from_onnx.program import Values, compute, observe, unique_name
from edgevit.from_onnx.read import label

if TYPE_CHECKING:
    from edgevit.from_onnx.program import ForeignModel

BATCHES = (1, 2, 3)  # the third proves what the first two say


class Affine(NamedTuple):
    """Shape arithmetic as a function of the batch: `first + (batch - 1) * step`."""

    first: np.ndarray
    step: np.ndarray

    def at(self, batch: int) -> np.ndarray:
        """The array at a batch."""
        return np.asarray(self.first + (batch - 1) * self.step)


class Segment(nn.Module):
    """Some steps of an imported module, which they are shared with: what they are given → one value."""

    def __init__(
        self, steps: Iterable[Any], arrays: Mapping[str, Affine], inputs: tuple[str, ...], output: str
    ) -> None:
        super().__init__()
        self.arrays, self.inputs, self.output = dict(arrays), inputs, output
        for step in steps:
            self.add_module(unique_name(self, step.node), step)

    def forward(self, *given: Tensor, instead: Mapping[str, Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        """Values of `inputs` → `output`. instead: value → another function of its step's first input."""
        values = self.start(*given)
        for step in self.steps:
            name = step.node.output[0]
            if instead and name in instead:
                values[name] = instead[name](values[step.node.input[0]])
            else:
                compute(step, values)
        result: Tensor = values[self.output]
        return result

    @property
    def steps(self) -> list[Any]:
        """In the order in which they run."""
        return list(self.children())

    def start(self, *given: Tensor) -> Values:
        """The values before the first step."""
        batch = int(given[0].shape[0])
        return {**dict(zip(self.inputs, given, strict=True)), **{n: a.at(batch) for n, a in self.arrays.items()}}

    def macs(self) -> int:
        """Multiply-accumulates of one token through its Linears."""
        return sum(int(step.operand1.numel()) for step in self.steps if is_linear(step))


class Dataflow:
    """The steps of a module by what they make and read. shapes: of tensors at batch 1; arrays hold no image."""

    def __init__(self, module: ForeignModel) -> None:
        self.file = module.file
        self.steps: list[Any] = list(module.graph.children())
        self.image, self.output = module.ends.image, module.ends.output
        self.seen = [observe(module, batch) for batch in ([1] if module.batch else BATCHES)]
        self.shapes = {n: v for n, v in self.seen[0].items() if isinstance(v, tuple)}
        self.made = {name: i for i, step in enumerate(self.steps) for name in step.node.output if name}
        self.readers: dict[str, list[Any]] = {}
        for step in self.steps:
            for name in self.tensors(step):
                self.readers.setdefault(name, []).append(step)
        self.cuts = self._cuts()

    def refuse(self, step: Any, why: str) -> NoReturn:
        """Stop at a node."""
        raise UnsupportedModel(
            f"{self.file}: its tokens cannot be reduced: node {label(step.node)} ({step.node.op_type}): {why}; it "
            "exports dense (drop --reduce)"
        )

    def tensors(self, step: Any) -> list[str]:
        """What a step reads that depends on the image, each once."""
        made = step.node.output[0]
        if made not in self.shapes:
            return []
        return [n for n in dict.fromkeys(reads(step.node)) if n in self.shapes or n == self.image]

    def arrays(self) -> Values:
        """What is known before any image comes, at batch 1."""
        return {name: value for name, value in self.seen[0].items() if isinstance(value, np.ndarray)}

    def constant(self, name: str, held: Tensor | None = None) -> Tensor | None:
        """A tensor that no image changes, at batch 1. held: what its reader holds as a parameter. None for others."""
        array = self.seen[0].get(name)
        if isinstance(array, np.ndarray):
            return torch.from_numpy(array)
        if name not in self.shapes:
            return held
        wanted, steps = {name}, []
        for step in reversed(self.steps[: self.made[name] + 1]):
            if wanted.intersection(step.node.output):
                if self.image in self.tensors(step):
                    return None
                steps.append(step)
                wanted.update(self.tensors(step))
        values = self.arrays()
        for step in reversed(steps):
            compute(step, values)
        found: Tensor = values[name]
        return found

    def maker(self, value: str) -> Any:
        """The step that makes a value, or None."""
        return self.steps[self.made[value]] if value in self.made else None

    def _cuts(self) -> list[str]:
        """Every value that all paths from the image to the output lead through, in order, by counting paths."""
        into, onward = {self.image: 1}, {self.output: 1}
        for step in self.steps:
            total = sum(into.get(name, 0) for name in self.tensors(step))
            into.update({name: total for name in step.node.output if name})
        for step in reversed(self.steps):
            total = sum(onward.get(name, 0) for name in step.node.output)
            for name in self.tensors(step):
                onward[name] = onward.get(name, 0) + total
        paths = into.get(self.output, 0)
        return [name for name in self.made if paths and into.get(name, 0) * onward.get(name, 0) == paths]

    def segment(self, inputs: tuple[str, ...], output: str) -> Segment:
        """The steps that make `output` of `inputs` and constants. Raises UnsupportedModel where they need more."""
        found: set[int] = set()
        arrays: dict[str, Affine] = {}
        wanted = [output]
        while wanted:
            name = wanted.pop()
            place = self.made.get(name)
            if name in inputs or place is None or place in found:
                continue
            array = self._array(name)
            if array is not None:
                arrays[name] = array
                continue
            found.add(place)
            step = self.steps[place]
            if self.image in self.tensors(step) and self.image not in inputs:
                self.refuse(
                    step, f"its result goes past {inputs[0]} to {output}, where one stream of tokens was expected"
                )
            wanted.extend(reads(step.node))
        return Segment([self.steps[i] for i in sorted(found)], arrays, inputs, output)

    def _array(self, name: str) -> Affine | None:
        """Shape arithmetic as a function of the batch; None for tensors, weights and what is no such function."""
        values: list[Any] = [seen.get(name) for seen in self.seen]
        if not all(isinstance(v, np.ndarray) and v.dtype.kind == "i" and v.shape == values[0].shape for v in values):
            return None
        found = Affine(values[0], values[1] - values[0] if len(values) > 1 else np.zeros_like(values[0]))
        return found if all(np.array_equal(found.at(i + 1), v) for i, v in enumerate(values)) else None


def is_linear(step: Any) -> bool:
    """A Linear, as `fuse_linear` writes it."""
    return bool(step.node.domain == OWN and step.node.op_type == "Linear")

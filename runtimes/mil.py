"""A reference executor of ML Programs: what an `.mlpackage` on disk computes, one operator after the other, in torch.

Core ML itself exists on Apple's systems only. Here every operator runs in float32 and its result is rounded to the
type that the file declares; a float16 value is held as the float32 number it is equal to. So float16 loses what its
11 bits of mantissa and its range lose, once an operator. A device may round more often (inside a sum) or less (inside
a fused pair). Integers, quantized values and decisions are exact. An operator that is not in `mil_ops.OPERATORS` is
refused by name: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import RuntimeRefusal
from edgevit.runtimes.mil_file import Constant, Declared, Operation, read_program

if TYPE_CHECKING:
    import numpy as np

Values = dict[str, Any]
HELD = {
    "FLOAT16": "float32", "FLOAT32": "float32", "BOOL": "bool", "INT8": "int8", "UINT8": "uint8",
    "INT16": "int32", "UINT16": "int32", "INT32": "int32", "UINT32": "int32",
    "INT4": "int8", "UINT1": "uint8", "UINT2": "uint8", "UINT3": "uint8", "UINT4": "uint8", "UINT6": "uint8",
}  # fmt: skip
"""In which type of torch a value of MIL is held; all its values fit."""


class MilSession:
    """A package from disk as a function. threads: of torch while it runs, None for what torch has."""

    def __init__(self, package: Path, threads: int | None = None) -> None:
        from edgevit.runtimes.mil_ops import OPERATORS

        program = read_program(package)
        unknown = sorted({o.kind for o in program.operations if o.kind != "const" and o.kind not in OPERATORS})
        if unknown:
            raise RuntimeRefusal(
                f"{package.name} cannot be run here: the executor does not know {', '.join(unknown)}; check it on a "
                "device, or leave out what makes the operator"
            )
        self.threads = threads
        self.name, self.declared = program.inputs[0]
        self.output = program.outputs[0]
        self.constants: Values = {}
        self.steps: list[tuple[Operation, Mapping[str, Any]]] = []
        for operation in program.operations:
            inputs = {key: _held(value) for key, value in operation.inputs.items()}
            if operation.kind.startswith("const"):  # with `constexpr_*`, which depend on constants alone
                _run(operation, inputs, self.constants)
            else:
                self.steps.append((operation, inputs))
        self.last_reads = self._last_reads()

    def _last_reads(self) -> list[list[str]]:
        """Names that nothing reads behind each step, so that their memory can go."""
        seen, found = {self.output, *self.constants}, list[list[str]]()
        for _, inputs in reversed(self.steps):
            read = {n for v in inputs.values() for n in (v if isinstance(v, tuple) else (v,)) if isinstance(n, Name)}
            found.append(sorted(read - seen))
            seen |= read
        return found[::-1]

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """float32 images of the built shape → float32 outputs."""
        import torch

        if images.shape != self.declared.shape:
            raise RuntimeRefusal(
                f"the program takes images of shape {list(self.declared.shape)}, got {list(images.shape)}"
            )
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            with torch.no_grad():
                return self.walk(torch.from_numpy(images))[self.output].numpy().copy()  # type: ignore[no-any-return]
        finally:
            torch.set_num_threads(before)

    def walk(self, images: Any, keep: bool = False) -> Values:
        """Run every step; with `keep`, values stay after their last read, to be looked at."""
        values = {**self.constants, self.name: _typed(images, self.declared)}
        for (operation, inputs), dead in zip(self.steps, self.last_reads, strict=True):
            _run(operation, inputs, values)
            for name in () if keep else dead:
                del values[name]
        return values


class Name(str):
    """The name of a value, apart from a string that is one."""


def _held(value: Any) -> Any:
    """Arguments as operators take them: tensors, Python numbers and strings for scalars, Name for what is computed."""
    import torch

    if isinstance(value, tuple):
        return tuple(_held(v) for v in value)
    if not isinstance(value, Constant):
        return Name(value)
    if value.dtype == "STRING":
        return value.value
    if not value.value.shape:
        return value.value.item()
    return torch.from_numpy(value.value.copy()).to(getattr(torch, HELD[value.dtype]))


def _run(operation: Operation, inputs: Mapping[str, Any], values: Values) -> None:
    """One operator: its results join the values, in the declared types."""
    from edgevit.runtimes.mil_ops import OPERATORS

    def look(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(look(v) for v in value)
        return values[value] if isinstance(value, Name) else value

    arguments = {key: look(value) for key, value in inputs.items()}
    if operation.kind == "const":
        values[operation.outputs[0][0]] = arguments["val"]
        return
    try:
        results = OPERATORS[operation.kind](**arguments)
    except (TypeError, NotImplementedError) as error:
        raise RuntimeRefusal(
            f"the executor cannot run {operation.kind} {operation.name!r} as written: {error}"
        ) from error
    results = results if isinstance(results, tuple) else (results,)
    for (name, declared), result in zip(operation.outputs, results, strict=False):  # a topk may declare no indices
        try:
            values[name] = _typed(result, declared)
        except ValueError as error:
            raise RuntimeRefusal(f"the executor misreads {operation.kind} {operation.name!r}: {error}") from error


def _typed(result: Any, declared: Declared) -> Any:
    """A result in its declared type. Raises ValueError where the shape is another."""
    import torch

    if tuple(result.shape) != declared.shape:
        raise ValueError(f"it gives {list(result.shape)}, the file declares {list(declared.shape)}")
    if declared.dtype == "FLOAT16":
        return result.half().float()
    return result.to(getattr(torch, HELD[declared.dtype]))

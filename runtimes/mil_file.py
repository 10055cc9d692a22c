"""An `.mlpackage` as it lies on disk: the operators of its ML Program in order, constants with their values.

The layout is public: `Manifest.json` names the root item, a protobuf `Model` (coremltools has its classes), and large
constants lie in `weights/weight.bin`. There, at the offset a constant names, stand 64 bytes (little endian: the word
DEADBEEF, a type code, the size and the place of the data) and elsewhere the data itself. Numbers below 8 bits are
packed, lowest bits first.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import BundleError, RuntimeRefusal
from edgevit.export.to_coreml import import_coremltools

if TYPE_CHECKING:
    import numpy as np

SENTINEL = 0xDEADBEEF
NUMPY = {
    "FLOAT16": "<f2", "FLOAT32": "<f4", "INT8": "i1", "UINT8": "u1", "INT16": "<i2", "UINT16": "<u2", "INT32": "<i4",
    "UINT32": "<u4",
}  # fmt: skip
PACKED = {"INT4": 4, "UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6}
"""Bits of the types that share bytes."""


@dataclass(frozen=True)
class Declared:
    """What the file says a value is: a type by its name in MIL (`FLOAT16`), and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """A value of the file: numpy array, or a string."""

    value: Any
    dtype: str


@dataclass(frozen=True)
class Operation:
    """One operator. inputs: parameter → Constant, name of a value, or several of them (`concat`)."""

    kind: str
    name: str
    inputs: Mapping[str, Any]
    outputs: tuple[tuple[str, Declared], ...]


@dataclass(frozen=True)
class Program:
    """The main function: names of its inputs and outputs, and what happens between, in order."""

    inputs: tuple[tuple[str, Declared], ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    opset: str


def model_file(package: Path) -> Path:
    """The protobuf file of a package, by its manifest."""
    manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    return package / "Data" / str(root["path"])


def read_program(package: Path) -> Program:
    """Read a package. Raises BundleError for a damaged one, RuntimeRefusal for what is no plain ML Program."""
    import_coremltools()
    from google.protobuf.message import DecodeError

    try:
        from coremltools.proto import Model_pb2

        path = model_file(package)
        model = Model_pb2.Model()
        model.ParseFromString(path.read_bytes())
        if model.WhichOneof("Type") != "mlProgram":
            raise RuntimeRefusal(f"{package.name} holds a {model.WhichOneof('Type')}; only an mlProgram can be read")
        return _Reader(model.mlProgram, path.parent).program()
    except (OSError, KeyError, ValueError, struct.error, DecodeError) as error:
        raise BundleError(
            f"{package.name} cannot be read ({error or type(error).__name__}); export it again"
        ) from error


class _Reader:
    """Protobuf messages → plain values."""

    def __init__(self, program: Any, folder: Path) -> None:
        from coremltools.proto import MIL_pb2

        self.function = program.functions["main"]
        self.folder = folder
        self.names = {number: name for name, number in MIL_pb2.DataType.items()}
        self.blobs: dict[str, bytes] = {}

    def program(self) -> Program:
        block = self.function.block_specializations[self.function.opset]
        inputs = tuple((i.name, self.declared(i.type)) for i in self.function.inputs)
        operations = tuple(self.operation(o) for o in block.operations)
        return Program(inputs, tuple(block.outputs), operations, self.function.opset)

    def declared(self, value_type: Any) -> Declared:
        tensor = value_type.tensorType
        return Declared(self.names[tensor.dataType], tuple(int(d.constant.size) for d in tensor.dimensions))

    def operation(self, op: Any) -> Operation:
        attributes = {key: self.constant(value) for key, value in op.attributes.items()}
        name = attributes.pop("name", None)
        inputs = {key: self.argument(value) for key, value in op.inputs.items()}
        outputs = tuple((o.name, self.declared(o.type)) for o in op.outputs)
        return Operation(op.type, str(name.value) if name else "", attributes | inputs, outputs)

    def argument(self, argument: Any) -> Any:
        found = tuple(b.name or self.constant(b.value) for b in argument.arguments)
        return found[0] if len(found) == 1 else found

    def constant(self, value: Any) -> Constant:
        declared = self.declared(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            flat = self.blob(value.blobFileValue, declared)
        else:
            flat = self.immediate(value.immediateValue.tensor, declared)
        if isinstance(flat, str):
            return Constant(flat, "STRING")
        return Constant(flat.reshape(declared.shape), declared.dtype)

    def immediate(self, tensor: Any, declared: Declared) -> Any:
        import numpy as np

        kind = tensor.WhichOneof("value")
        values: Any = getattr(tensor, kind).values if kind else []
        if kind == "bytes":
            return unpacked(values, declared)
        if kind == "strings":
            return str(values[0])
        return np.array(values, bool if declared.dtype == "BOOL" else NUMPY[declared.dtype])

    def blob(self, place: Any, declared: Declared) -> np.ndarray[Any, Any]:
        file = place.fileName.rsplit("/", 1)[-1]
        if file not in self.blobs:
            self.blobs[file] = (self.folder / "weights" / file).read_bytes()
        data = self.blobs[file]
        sentinel, _, size, offset = struct.unpack_from("<IIQQ", data, place.offset)
        if sentinel != SENTINEL or offset + size > len(data):
            raise ValueError(f"{file} has no constant at byte {place.offset}")
        return unpacked(data[offset : offset + size], declared)


def unpacked(data: bytes, declared: Declared) -> np.ndarray[Any, Any]:
    """Bytes → numbers; those of fewer than 8 bits one a byte."""
    import numpy as np

    bits = PACKED.get(declared.dtype)
    if bits is None:
        return np.frombuffer(data, NUMPY[declared.dtype])
    count = int(np.prod(declared.shape))
    each = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    numbers = each @ (1 << np.arange(bits))
    if declared.dtype == "INT4":
        return ((numbers + 8) % 16 - 8).astype(np.int8)
    return numbers.astype(np.uint8)

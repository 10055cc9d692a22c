"""Tensors of an untrusted ONNX file → arrays; external data only from inside the file's own folder."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from edgevit.errors import LoadError

if TYPE_CHECKING:
    import numpy as np
    import onnx

TYPES = {
    "FLOAT": 4, "DOUBLE": 8, "FLOAT16": 2, "BFLOAT16": 2, "BOOL": 1,
    "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8,
}  # fmt: skip


def numbers(path: Path, tensor: onnx.TensorProto) -> np.ndarray:
    """The values of a tensor of the file at `path`; bfloat16 as float32. Raises LoadError."""
    import numpy as np
    from onnx import TensorProto as Proto
    from onnx import helper, numpy_helper

    kind = Proto.DataType.Name(tensor.data_type) if tensor.data_type in Proto.DataType.values() else "unknown"
    if kind not in TYPES:
        raise LoadError(f"{path.name}: tensor {tensor.name!r} is of type {kind}; read are {', '.join(TYPES)}")
    shape = tuple(tensor.dims)
    if any(d < 0 for d in shape) or len(shape) > 8:
        raise LoadError(f"{path.name}: tensor {tensor.name!r} has the shape {shape}")
    need = math.prod(shape) * TYPES[kind]
    if tensor.data_location == Proto.EXTERNAL:
        value = _external(path, tensor, need).view(helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(shape)
    else:
        if tensor.raw_data and len(tensor.raw_data) != need:
            raise _wrong_length(path, tensor, len(tensor.raw_data), need)
        try:
            value = numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise _wrong_length(path, tensor, 0, need) from error
        if value.shape != shape:
            raise _wrong_length(path, tensor, value.nbytes, need)
    if kind == "BFLOAT16":
        value = value.astype(np.float32)
    own: np.ndarray[Any, Any] = value if value.flags.writeable else value.copy()  # as torch wants to share it
    return own


def _wrong_length(path: Path, tensor: onnx.TensorProto, have: int, need: int) -> LoadError:
    return LoadError(
        f"{path.name}: tensor {tensor.name!r} has {have or 'other'} bytes, its shape {list(tensor.dims)} needs {need}; "
        "the file is corrupt"
    )


def _external(path: Path, tensor: onnx.TensorProto, need: int) -> np.ndarray:
    """The bytes of a tensor that lie in another file."""
    import numpy as np

    entries = {e.key: e.value for e in tensor.external_data}
    where = f"{path.name}: tensor {tensor.name!r}"
    file = inside(path, tensor)
    span = (entries.get("offset", "0"), entries.get("length", str(need)))
    if not all(number.isascii() and number.isdecimal() and len(number) < 19 for number in span):
        raise LoadError(f"{where} has the offset and length {span}; the file is corrupt")
    offset, length = int(span[0]), int(span[1])
    size = file.stat().st_size
    if length != need or offset + length > size:
        raise LoadError(
            f"{where} needs {need} bytes; it claims {length} at {offset} of {file.name}, which has {size}; is the file "
            "complete?"
        )
    return np.fromfile(file, np.uint8, length, offset=offset)


def inside(path: Path, tensor: onnx.TensorProto) -> Path:
    """The file beside the model at `path` that holds the tensor; refused unless it lies in the model's folder."""
    where = f"{path.name}: tensor {tensor.name!r}"
    location = next((e.value for e in tensor.external_data if e.key == "location"), "")
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    outside = posix.is_absolute() or windows.anchor or ".." in windows.parts or not windows.parts
    if outside or "\0" in location:
        raise LoadError(f"{where} points to {location!r}; external data must be a file inside the model's own folder")
    folder = path.parent.resolve()
    try:
        file = (folder / location).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise LoadError(f"{where} needs the file {location!r}, which is not beside the model") from error
    if not file.is_relative_to(folder):
        raise LoadError(f"{where} points to {location!r}, a link out of the model's folder; put the file itself there")
    if not file.is_file():
        raise LoadError(f"{where} points to {location!r}, which is no file")
    return file

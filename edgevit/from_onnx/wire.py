"""Count the messages of a protobuf file before a parser makes an object of each.

An empty node takes two bytes in a file and hundreds in memory, so a small file can ask for more memory than there is.
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from typing import Any

from edgevit.errors import LoadError

MOST_FIELDS = 1_000_000  # an exported ViT-L with its metadata has some 200,000
DEEPEST = 40  # messages inside messages; each graph inside a graph adds three
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
TRUNCATED = "it ends inside a field"


def check_wire(data: bytes, descriptor: Any, name: str) -> None:
    """Raise LoadError unless `data` is a whole message of the type, within the limits."""
    if not data:
        raise LoadError(f"{name} is empty")
    fields = 0
    stack = [(0, len(data), _messages(descriptor), 0)]  # start, end, message types of its fields, depth
    while stack:
        at, end, kinds, depth = stack.pop()
        if depth > DEEPEST:
            raise LoadError(f"{name} nests its graphs too deeply (limit {DEEPEST} messages); no exporter writes this")
        while at < end:
            fields += 1
            if fields > MOST_FIELDS:
                raise LoadError(f"{name} has more than {MOST_FIELDS} fields; no model of this size is read")
            key, at = _varint(data, at, end, name)
            number, kind = key >> 3, key & 7
            length, at = _length(data, at, end, kind, name)
            if at + length > end:
                raise _corrupt(name, TRUNCATED)
            if kind == BYTES and number in kinds:
                stack.append((at, at + length, _messages(kinds[number]), depth + 1))
            at += length


_KNOWN: dict[str, dict[int, Any]] = {}


def _messages(descriptor: Any) -> dict[int, Any]:
    """Field number → the type of the message it holds."""
    found = _KNOWN.get(descriptor.full_name)
    if found is None:
        found = {f.number: f.message_type for f in descriptor.fields if f.message_type is not None}
        _KNOWN[descriptor.full_name] = found
    return found


def _length(data: bytes, at: int, end: int, kind: int, name: str) -> tuple[int, int]:
    """Bytes of a field's value, and where they start."""
    if kind == BYTES:
        return _varint(data, at, end, name)
    if kind == VARINT:
        return 0, _varint(data, at, end, name)[1]
    if kind == FIXED64:
        return 8, at
    if kind == FIXED32:
        return 4, at
    raise _corrupt(name, f"wire type {kind} at byte {at}")


def _varint(data: bytes, at: int, end: int, name: str) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise _corrupt(name, f"a number of more than ten bytes at byte {at}")
    raise _corrupt(name, TRUNCATED)


def _corrupt(name: str, why: str) -> LoadError:
    return LoadError(f"{name} is corrupt, truncated or no ONNX file ({why}); copy or download it again")

"""The name of a built engine in a cache: it changes with whatever makes a device build it again."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path


def engine_key(onnx: Path, device: str, tensorrt: str) -> str:
    """Hex digits of the ONNX file's content, the device (board or GPU) and the version of TensorRT."""
    digest = sha256(sha256(onnx.read_bytes()).digest())
    for part in (device, tensorrt):
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()[:24]

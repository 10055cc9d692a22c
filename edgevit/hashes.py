"""SHA-256 of files and of weights that came from no file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sha256_file(path: Path, *more: Path) -> str:
    """Hash of a file, or of several end to end, read in pieces."""
    digest = hashlib.sha256()
    for part in (path, *more):
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def sha256_state(state: Mapping[str, torch.Tensor]) -> str:
    """Hash of weights: names, dtypes, shapes and bytes in order."""
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

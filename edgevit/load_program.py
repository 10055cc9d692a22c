"""A `.pt2` archive → ExportedProgram, without running code from the file.

`torch.export.load` alone does not promise that: it unpickles constants and sample inputs, loads compiled libraries,
evaluates the expressions of symbolic shapes, and takes any function below `torch` for an operator. So the archive is
read first, and one that holds any of these is refused unless its author is trusted.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import LoadError
from edgevit.quiet import quiet

if TYPE_CHECKING:
    from torch.export import ExportedProgram

PLAIN = re.compile(  # every entry that torch.export.save writes for a program of plain tensors
    r"archive_format|archive_version|version|byteorder|\.data/\w+|models/\w+\.json|data/weights/weight_\d+"
    r"|data/constants/tensor_\d+|data/(weights|constants)/\w+_config\.json|data/sample_inputs/\w+\.pt|extra/.*"
)
OPERATOR = re.compile(r"torch\.ops\.(aten|prims?|quantized_decomposed|torchvision|higher_order)\.[a-z_]\w*(\.\w+)?")
BUILTIN = "_operator.getitem"  # takes one of an operator's several outputs


def read_program(path: Path, trust_pickle: bool = False) -> ExportedProgram:
    """Read a program saved by `torch.export.save`. Raises LoadError."""
    import torch

    if not trust_pickle:
        reason = _why_unsafe(path)
        if reason:
            raise LoadError(
                f"{path} {reason}, and reading that can run code from the file; save a plain program with "
                "torch.export.save, or pass --trust-pickle if you trust its author"
            )
    try:
        with quiet("torch.export"):  # it logs a traceback before it raises the same error
            return torch.export.load(path)
    except Exception as error:
        # the deserializer fails with whatever a damaged field makes it trip over; torch has no class for it
        raise LoadError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: BaseException) -> str:
    text = str(error).strip().split("\n")[0][:160]
    return f"{path} is corrupt or no torch.export archive ({text}); save or copy it again"


def _why_unsafe(path: Path) -> str | None:
    """What the archive holds beside operators and plain tensors, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            strange = [name for name in names if not PLAIN.fullmatch(name)]
            if strange or len(set(names)) != len(names):
                return f"holds {strange[0] if strange else 'two entries of one name'}"
            for full, name in zip(archive.namelist(), names, strict=True):
                reason = _entry_reason(name, archive, full)
                if reason:
                    return reason
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(_unreadable(path, error)) from error
    return None


def _entry_reason(name: str, archive: zipfile.ZipFile, full: str) -> str | None:
    if name.startswith("models/"):
        return _program_reason(json.loads(archive.read(full)))
    if name.endswith("_config.json"):
        tensors = json.loads(archive.read(full))["config"].values()
        return "holds pickled tensors" if any(t["use_pickle"] for t in tensors) else None
    if name.startswith("data/sample_inputs/"):
        import torch

        try:
            torch.load(io.BytesIO(archive.read(full)), weights_only=True)
        except (pickle.UnpicklingError, RuntimeError):
            return "holds sample inputs that are pickled objects"
    return None


def _program_reason(value: Any) -> str | None:
    """Walk the serialized graph: operators must be operators, shapes must be numbers."""
    if isinstance(value, list):
        return next(filter(None, map(_program_reason, value)), None)
    if not isinstance(value, dict):
        return None
    if value.get("expr_str") is not None:
        return "has dynamic shapes (export it again with static ones)"
    target = value.get("target") if "inputs" in value else None
    if target is not None and target != BUILTIN and not OPERATOR.fullmatch(str(target)):
        return f"calls {target}"
    return next(filter(None, map(_program_reason, value.values())), None)

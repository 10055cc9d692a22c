"""edgevit: Vision Transformers on real devices.

Load, reduce tokens, quantize, compile, measure, report. Importing this package imports nothing heavy: the public
names below are resolved on first use (PEP 562).
"""

from importlib import import_module
from typing import Any

from edgevit.version import __version__

_PUBLIC = {
    "EdgeVitError": "edgevit.errors",
    "load": "edgevit.load",
    "adapt": "edgevit.adapters",
    "reduce": "edgevit.reduce",
    "parse_schedule": "edgevit.tokens.schedule",
    "trace": "edgevit.export.trace",
    "quantize": "edgevit.quant.apply",
    "export": "edgevit.pipeline",
    "ExportSettings": "edgevit.pipeline",
    "evaluate": "edgevit.evaluate",
    "profile": "edgevit.devices.bench",
    "Bundle": "edgevit.bundle",
    # for a model of one's own: docs/own-model.md
    "VitModel": "edgevit.stages",
    "Stage": "edgevit.stages",
    "Tap": "edgevit.stages",
    "InputSpec": "edgevit.stages",
    "Block": "edgevit.adapters.block",
    "prove_identity": "edgevit.adapters",
    "to_onnx": "edgevit.export.to_onnx",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgevit' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)

"""One version of every operator: axes as inputs, Gelu and LayerNormalization as operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.errors import LoadError

if TYPE_CHECKING:
    from edgevit.from_onnx.read import Foreign

OPSET = 20  # the first with Gelu; what newer ones changed the importer reads as well


def convert_opset(foreign: Foreign) -> int:
    """ReduceMean(x, axes=[-1]), opset 11  becomes  ReduceMean(x, [-1]), opset 20; by onnx's own converter."""
    import onnx

    from edgevit.from_onnx.read import first_reason

    if foreign.opset >= OPSET:
        return 0
    try:
        converted = onnx.version_converter.convert_version(foreign.model, OPSET)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        raise LoadError(
            f"{foreign.name}: opset {foreign.opset} cannot be converted to {OPSET}: {first_reason(error)}; export the "
            f"model again with opset 17 or newer"
        ) from error
    foreign.model.CopyFrom(converted)
    return 1

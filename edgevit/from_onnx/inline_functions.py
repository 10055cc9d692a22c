"""A model's own functions become their nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgevit.from_onnx.read import Foreign


def inline_functions(foreign: Foreign) -> int:
    """f(x), f = {Mul, Add}  becomes  Mul, Add; by onnx's own inliner. `read` has counted what it will make."""
    from onnx.inliner import inline_local_functions

    count = len(foreign.model.functions)
    if count:
        foreign.model.CopyFrom(inline_local_functions(foreign.model))
    return count

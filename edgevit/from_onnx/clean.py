"""The passes between reading and importing: one a file, in an order that can be read.

A pass is a function `Foreign -> int`, how often it matched; it changes the graph in place and keeps what the graph
computes. Nothing here is believed: `prove` compares the result with the file itself.
"""

from __future__ import annotations

from collections.abc import Callable

from edgevit.errors import LoadError
from edgevit.from_onnx.editing import drop_unread
from edgevit.from_onnx.read import Foreign, first_reason
from edgevit.names import named

PASSES = {
    "inline_functions": "edgevit.from_onnx.inline_functions:inline_functions",  # first: the others see plain nodes
    "convert_opset": "edgevit.from_onnx.convert_opset:convert_opset",  # then one form of each operator
    "one_float_type": "edgevit.from_onnx.one_float_type:one_float_type",
    "fold_constants": "edgevit.from_onnx.fold_constants:fold_constants",
    "unfuse_microsoft": "edgevit.from_onnx.unfuse_microsoft:unfuse_microsoft",  # one form of each operator again
    "unique_places": "edgevit.from_onnx.unique_places:unique_places",  # a mask for what follows
    "static_counts": "edgevit.from_onnx.static_counts:static_counts",  # shapes are not known before
    "fix_shapes": "edgevit.from_onnx.fix_shapes:fix_shapes",  # what follows asks for shapes
    "drop_identities": "edgevit.from_onnx.drop_identities:drop_identities",  # patterns need not look through them
    "scatter_rows": "edgevit.from_onnx.scatter_rows:scatter_rows",
    "unflatten_softmax": "edgevit.from_onnx.unflatten_softmax:unflatten_softmax",  # before attention is looked for
    "drop_open_masks": "edgevit.from_onnx.drop_open_masks:drop_open_masks",
    "fuse_layer_norm": "edgevit.from_onnx.fuse_layer_norm:fuse_layer_norm",
    "fuse_gelu": "edgevit.from_onnx.fuse_gelu:fuse_gelu",
    "fuse_attention": "edgevit.from_onnx.fuse_attention:fuse_attention",  # onnx infers no shape behind our operators
    "fuse_linear": "edgevit.from_onnx.fuse_linear:fuse_linear",
    "unflatten_rows": "edgevit.from_onnx.unflatten_rows:unflatten_rows",  # one form of Linear behind it
}


def clean(foreign: Foreign) -> dict[str, int]:
    """Run the passes on a graph whose input and output are chosen; how often each matched. Raises LoadError."""
    import onnx

    matches = {}
    for name, path in PASSES.items():
        run: Callable[[Foreign], int] = named(path)
        try:
            matches[name] = run(foreign)
        except onnx.shape_inference.InferenceError as error:
            raise LoadError(f"{foreign.name} is no valid ONNX graph: {first_reason(error)}; export it again") from error
        drop_unread(foreign)
        try:
            onnx.checker.check_model(foreign.model)
        except onnx.checker.ValidationError as error:
            raise LoadError(
                f"{foreign.name}: pass {name} left an invalid graph ({first_reason(error)}); this is a bug in the pass"
            ) from error
    return {name: count for name, count in matches.items() if count}

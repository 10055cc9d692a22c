"""How Core AI writes the Q/DQ operators of a program, which its converter does not know.

It counts `scale * (q - offset1) + offset2`; offset1 is a zero point in the type of q, offset2 a float and 0 here.
"""

from __future__ import annotations

from typing import Any

LIBRARY = "quantized_decomposed"


def register(converter: Any) -> None:
    """Teach a TorchConverter the three operators."""
    for name in ("quantize_per_tensor", "dequantize_per_tensor"):
        converter.register_torch_lowering(f"{LIBRARY}::{name}.default")(_per_tensor)
    converter.register_torch_lowering(f"{LIBRARY}::dequantize_per_channel.default")(_per_channel)


def _per_tensor(values: dict[str, Any], node: Any, place: Any) -> Any:
    """(x, scale, zero point, low, high, type): one scale for the tensor."""
    import numpy as np
    from coreai._compiler.dialects import coreai

    x, scale, zero = node.args[:3]
    stored = np.dtype(str(node.args[5]).removeprefix("torch."))
    write = coreai.quantize if "dequantize" not in str(node.target) else coreai.dequantize
    real = _dtype(x if write is coreai.quantize else node)
    constants = (real.type(scale), stored.type(zero), real.type(0))
    return write(values[x.name], *(coreai.constant(np.asarray(c)) for c in constants), np.int32(0), loc=place)


def _per_channel(values: dict[str, Any], node: Any, place: Any) -> Any:
    """(weight, scales, zero points, axis, low, high, type): a stored weight, its scales laid along the axis.

    The operator of compressed weights, which engines read as they are stored; zero points are 0.
    """
    import numpy as np
    from coreai._compiler.dialects import coreai

    weight, scale, _, axis = node.args[:4]
    shape = [1] * node.meta["val"].ndim
    shape[axis] = scale.meta["val"].shape[0]
    stored = np.dtype(str(node.args[6]).removeprefix("torch."))
    offsets = (np.zeros(shape, stored), np.zeros(shape, _dtype(scale)))
    laid = coreai.reshape(values[scale.name], shape)
    return coreai.blockwise_shift_scale(values[weight.name], laid, *map(coreai.constant, offsets), loc=place)


def _dtype(node: Any) -> Any:
    """A value's type, as numpy has it."""
    import numpy as np

    return np.dtype(str(node.meta["val"].dtype).removeprefix("torch."))

"""Two operators of a program: to 8-bit floats (E4M3, largest value 448) and back.

PyTorch's own `quantized_decomposed.quantize_per_tensor` takes the type too, but rounds to integers first, and its
`dequantize_per_channel` does not take it at all.
"""

from __future__ import annotations

import torch

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0
_LIBRARY = torch.library.Library("edgevit", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    "quantize_float8(Tensor x, Tensor scale) -> Tensor",
    "dequantize_float8(Tensor values, Tensor scale) -> Tensor",
):
    _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]


def _along(scale: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One scale `[]`, or one for each entry of the first axis `[C]`, so that it broadcasts."""
    return scale.reshape(-1, *[1] * (values.ndim - 1)) if scale.ndim else scale


@torch.library.impl(_LIBRARY, "quantize_float8", "CompositeExplicitAutograd")
def quantize_float8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Divided by the scale, to the nearest value of E4M3, halves to even; what is too large becomes ±448.

    >>> quantize_float8(torch.tensor([1.0625, 1.1875, -1e9]), torch.tensor(1.0)).tolist()
    [1.0, 1.25, -448.0]
    """
    return (x.float() / _along(scale, x).float()).clamp(-LARGEST, LARGEST).to(FLOAT8)


@torch.library.impl(_LIBRARY, "dequantize_float8", "CompositeExplicitAutograd")
def dequantize_float8(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """E4M3 → the type of its scale, times the scale."""
    return values.to(scale.dtype) * _along(scale, values)


QUANTIZE, DEQUANTIZE = torch.ops.edgevit.quantize_float8.default, torch.ops.edgevit.dequantize_float8.default

"""GPTQ: round a weight input by input, and let the inputs that follow make up for each error.

Frantar et al., 2022, arXiv:2210.17323, section 3 and algorithm 1.

With H = 2 X Xᵀ over the layer's inputs and U the upper Cholesky factor of H⁻¹, rounding column q leaves the error
e = (w_q - ŵ_q) / U_qq, of which each later column j takes e · U_qj. A group's scale is chosen when its turn comes.
"""

from __future__ import annotations

import torch

from edgevit.quant.ranges import quantize_weight

DAMPING = 0.01
"""Added to the diagonal of H, relative to its mean (section 3.3, step 3)."""


def gptq(weight: torch.Tensor, inputs: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `[out, in]` and rows of its input `[n, in]` → integers `[out, in]` and scales `[out, in / group]`."""
    largest = 2 ** (bits - 1) - 1
    left, factor = weight.double(), _factor(inputs.double())
    integers, scales = torch.empty_like(weight, dtype=torch.int8), []
    for start in range(0, weight.shape[1], group):
        _, scale = quantize_weight(left[:, start : start + group].float(), bits)
        for column in range(start, start + group):
            rounded = (left[:, column] / scale).round().clamp(-largest, largest)
            integers[:, column] = rounded.to(torch.int8)
            error = (left[:, column] - rounded * scale) / factor[column, column]
            left = left - error[:, None] * factor[column]  # `factor` is 0 in front of the column
        scales.append(scale)
    return integers, torch.stack(scales, 1)


def _factor(inputs: torch.Tensor) -> torch.Tensor:
    """U, `[in, in]`. An input that is always 0 gets a diagonal of 1: its weight is free."""
    hessian = 2 * inputs.t() @ inputs
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)

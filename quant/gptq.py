"""GPTQ: round a weight input by input, and let the inputs that follow make up for each error.

Frantar et al., 2022, arXiv:2210.17323, section 3 and algorithm 1. With H = 2 X Xᵀ over the layer's inputs and U the
upper Cholesky factor of H⁻¹, rounding column q leaves the error e = (w_q - ŵ_q) / U_qq, of which each later column j
takes e · U_qj. A group's scales are chosen when its turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgevit.quant.ranges import quantize_weight
from edgevit.quant.scheme import QuantScheme

DAMPINGS = (0.01, 0.1, 1.0)
"""Added to the diagonal of H, relative to its mean. The paper's 0.01 is for far more images than we keep: fitted on 16,
it made some layers worse on 16 others."""


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, damping: float, scheme: QuantScheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `[out, in]` and H `[in, in]` → integers `[out, in]` and scales `[out, in / group]`."""
    bits, group = scheme.weight_bits, scheme.group
    largest = 2 ** (bits - 1) - 1
    left, factor = weight.to(torch.float64, copy=True), _factor(hessian, damping)
    integers, scales = torch.empty_like(weight, dtype=torch.int8), []
    for start in range(0, weight.shape[1], group):
        end = start + group
        block, errors = left[:, start:end].clone(), torch.empty(len(weight), group, dtype=torch.float64)
        _, scale = quantize_weight(block.float(), bits)
        for i, column in enumerate(range(start, end)):
            rounded = (block[:, i] / scale).round().clamp(-largest, largest)
            integers[:, column] = rounded.to(torch.int8)
            errors[:, i] = (block[:, i] - rounded * scale) / factor[column, column]
            block[:, i:] -= errors[:, i, None] * factor[column, column:end]
        left[:, end:] -= errors @ factor[start:end, end:]  # later groups see none of this before their turn
        scales.append(scale)
    return integers, torch.stack(scales, 1)


def curvature(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """H of a Linear's inputs `[..., in]`: float64 `[in, in]`."""
    width = inputs[0].shape[-1]
    total = torch.zeros(width, width, dtype=torch.float64)
    for value in inputs:
        rows = value.reshape(-1, width).double()
        total += 2 * rows.t() @ rows
    return total


def _factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """U. An input that is always 0 gets a diagonal of 1: its weight is free."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    factor: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return factor

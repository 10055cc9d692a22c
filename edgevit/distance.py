"""How far a model's outputs are from those they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, relative to the largest value that is wanted; NaN where either holds one."""
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-12))


def divergence(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """How far outputs are from the wanted ones, per image `[B]`.

    Class scores `[B, classes]`: Kullback-Leibler divergence of the softmax. Anything else, one number an image
    included: squared error over square.
    """
    if want.ndim == 2 and want.shape[1] > 1:
        p, log_q, log_p = want.softmax(-1), got.log_softmax(-1), want.log_softmax(-1)
        return (p * (log_p - log_q)).sum(-1)
    error, scale = (got - want).flatten(1).square().sum(1), want.flatten(1).square().sum(1)
    return error / scale.clamp_min(1e-12)
